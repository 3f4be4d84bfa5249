//! `moe-run bench`: its three forms, its numbers against each other, refusals. No speed is asserted.

use moe_run_tests::cli::{Finished, run};
use serde_json::Value;

fn bench(args: &[&str]) -> Finished {
    let command = ["bench", "--backend", "reference", "-r", "2", "-p", "8", "-n", "3"];
    run(env!("CARGO_BIN_EXE_moe-run-under-test"), command.iter().chain(args).copied())
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn json_names_what_was_run_and_its_numbers_agree() {
    let report = bench(&["--json", "--depth", "0,5"]).succeeded().json();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["model"]["architecture"], "qwen3moe");
    assert_eq!(report["settings"]["activations"], "f32");
    let rows = report["results"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|r| r["test"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["pp8", "tg3", "pp8 @ d5", "tg3 @ d5"]);
    for row in rows {
        let seconds: Vec<f64> =
            row["seconds"].as_array().expect("runs").iter().filter_map(Value::as_f64).collect();
        assert_eq!(seconds.len(), 2);
        let median = (seconds[0] + seconds[1]) / 2.0;
        let close = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-9, "{row}");
        close(number(row, "tokens_per_second"), number(row, "tokens") / median);
        close(number(row, "gb_per_second"), number(row, "bytes") / median / 1e9);
        close(number(row, "share_of_read"), number(row, "gb_per_second") / number(row, "read_gb_per_second"));
        assert!(number(row, "tokens_per_second_min") <= number(row, "tokens_per_second_max"));
    }
    // Generation reads 4 of the 16 experts a token and layer. At depth 5 it reads 5 rows of K and V more in each of 3
    // tokens and 4 layers: 2 KV heads of 64 in two bytes.
    let bytes = |i: usize| number(&rows[i], "bytes");
    assert_eq!(bytes(3) - bytes(1), f64::from(5 * 3 * 4 * 2 * 2 * 64 * 2));
    assert!(bytes(1) / 3.0 < number(&report["model"], "weight_bytes") / 2.0);
}

#[test]
fn a_profile_splits_the_time_and_the_bytes() {
    let report = bench(&["--json", "--profile"]).succeeded().json();
    let profiles = report["profiles"].as_array().expect("profiles");
    assert_eq!(profiles.len(), 2);
    for (profile, row) in profiles.iter().zip(report["results"].as_array().expect("rows")) {
        assert_eq!(profile["test"], row["test"]);
        let ops = profile["ops"].as_array().expect("ops");
        let sum = |key: &str| ops.iter().map(|op| number(op, key)).sum::<f64>();
        assert!(
            (sum("share") - 1.0).abs() < 1e-9
                && (sum("seconds") / number(profile, "seconds") - 1.0).abs() < 1e-9
        );
        assert_eq!((sum("bytes"), sum("flops")), (number(row, "bytes"), number(row, "flops")), "{profile}");
        let of = |op: &str| ops.iter().find(|o| o["op"] == op).unwrap_or_else(|| panic!("{op} in {profile}"));
        // The reference runs each op as a launch of its own: gate, up and down in 4 layers.
        let steps = if row["kind"] == "prompt" { 1 } else { 3 };
        assert_eq!(of("expert_matmul")["launches"], steps * 3 * 4);
        assert!(of("attention")["bytes"].as_u64() > Some(0));
    }
}

/// On the reference, which waits for each step, and on a backend that is given the next one before.
#[test]
fn greedy_generation_is_a_test_of_its_own() {
    let harness = ["--backend", "cuda", "--device", "host-harness"];
    for backend in [&["--backend", "reference"][..], &harness] {
        let args = ["bench", "-r", "1", "-p", "0", "-n", "3", "--greedy", "--profile", "--json"];
        let report = run(env!("CARGO_BIN_EXE_moe-run-under-test"), args.iter().chain(backend).copied())
            .succeeded()
            .json();
        let (row, profile) = (&report["results"][0], &report["profiles"][0]);
        assert_eq!((&row["test"], &row["kind"]), (&"greedy3".into(), &"greedy".into()), "{backend:?}");
        assert!(number(row, "tokens_per_second") > 0.0 && number(profile, "seconds") > 0.0);
    }
}

#[test]
fn markdown_is_a_header_and_a_table() {
    let text = bench(&[]).succeeded().stdout;
    for wanted in ["- moe-run ", "- model: ", "- machine: ", "activations f32", "| pp8 | 1 |", "| tg3 | 1 |"]
    {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
}

#[test]
fn csv_has_a_line_a_row_with_as_many_cells_as_the_header() {
    // Numbers given twice are added to the list; 0 stands for no test.
    let text = bench(&["--csv", "-n", "0"]).succeeded().stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("version,commit,model"));
    assert!(lines[1].contains(",pp8,1,8,0,"), "{text}");
}

#[test]
fn nothing_to_time_and_two_forms_are_refused() {
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    let nothing = run(program, ["bench", "--backend", "reference", "-p", "0", "-n", "0"]);
    assert_eq!(nothing.code, 2, "{nothing:#?}");
    assert!(nothing.stderr.contains("-p and -n are both 0"), "{nothing:#?}");
    let device = run(program, ["bench", "--backend", "auto", "--device", "3"]);
    assert_eq!(device.code, 2, "{device:#?}");
    assert!(device.stderr.contains("devices are numbered by backend"), "{device:#?}");
    for forms in [["--json", "--csv"], ["--csv", "--profile"]] {
        let both = bench(&forms);
        assert_eq!((both.code, both.stdout.as_str()), (2, ""), "{both:#?}");
        assert!(both.stderr.contains("cannot be used with"), "{both:#?}");
    }
}

/// Behind a prompt longer than what windows hold, and with a state that changes with every token, the next run begins where the
/// first did.
#[test]
fn models_that_do_not_go_back_freely_are_timed_at_a_depth() {
    for stem in ["gpt-oss/mxfp4-mxfp4_moe", "qwen3next/small-fused-q8_0"] {
        let file = moe_run_tests::fixtures::find(&format!("arch/{stem}.gguf")).expect("carried");
        let args = [
            "bench",
            "--backend",
            "cpu",
            "-t",
            "2",
            "-r",
            "2",
            "-p",
            "1100",
            "-n",
            "3",
            "-d",
            "0,70",
            "--json",
            "-m",
        ];
        let finished = run(
            env!("CARGO_BIN_EXE_moe-run-under-test"),
            args.into_iter().chain([file.to_str().expect("a path")]),
        );
        let report = finished.succeeded().json();
        assert_eq!(report["results"].as_array().map(Vec::len), Some(4), "{stem}: {report}");
    }
}
