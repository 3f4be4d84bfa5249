//! The command line: lists of devices, budgets, files of placements, and what is refused.

use moe_run_tests::cli::{Finished, run};
use moe_run_tests::fixtures;

fn moe_run(args: &[&str]) -> Finished {
    run(env!("CARGO_BIN_EXE_moe-run-under-test"), args.iter().copied())
}

const PROMPT: &[&str] = &["-p", "What is 2+2?", "--temp", "0", "-n", "8"];

fn prompted(args: &[&str]) -> Finished {
    moe_run(&[PROMPT, args].concat())
}

#[test]
fn a_list_of_devices_answers_as_one_does_and_says_what_went_where() {
    let one = prompted(&["--backend", "cpu"]).succeeded();
    let two = prompted(&["--device", "cpu,cpu"]).succeeded();
    assert_eq!(two.stdout, one.stdout);
    for said in
        ["placed: layers ", " on cpu, layers ", "why: weights, states", "runs: layers ", "memory of layers "]
    {
        assert!(two.stderr.contains(said), "{said}: {}", two.stderr);
    }
    let harness =
        prompted(&["--device", "cuda:host-harness,cpu", "--device-memory", "cuda:host-harness=1MB"]);
    assert_eq!(harness.succeeded().stdout, one.stdout);
    let single = prompted(&["--device", "cpu"]).succeeded();
    assert_eq!(single.stdout, one.stdout);
}

#[test]
fn a_placement_is_saved_and_given() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("placement.json");
    let file = file.to_str().unwrap();
    let saved =
        prompted(&["--device", "cpu,reference", "--place", "layers", "--save-placement", file]).succeeded();
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("\"devices\"") && text.contains("reference"), "{text}");
    // Without a list, the devices are the file's.
    let given = prompted(&["--place", file]).succeeded();
    assert_eq!(given.stdout, saved.stdout);
    assert!(given.stderr.contains("as the given placement says"), "{}", given.stderr);
    // On other devices, as many.
    let other = prompted(&["--place", file, "--device", "cpu,cpu"]).succeeded();
    assert_eq!(other.stdout, saved.stdout);
    let fewer = prompted(&["--place", file, "--device", "cpu"]);
    assert!(fewer.code == 2 && fewer.stderr.contains("1 devices are named"), "{fewer:?}");
    std::fs::write(file, text.replace("\"layers\": [", "\"layers\": [0,")).unwrap();
    let longer = prompted(&["--place", file]);
    assert!(longer.code == 2 && longer.stderr.contains("for a model of"), "{longer:?}");
    std::fs::write(file, "{").unwrap();
    let broken = prompted(&["--place", file]);
    assert!(broken.code == 2 && broken.stderr.contains("--save-placement"), "{broken:?}");
}

#[test]
fn budgets_that_do_not_do_are_refused_with_what_would() {
    let refused = prompted(&[
        "--device",
        "cpu,reference",
        "--device-memory",
        "cpu=1kB",
        "--device-memory",
        "reference=64kB",
    ]);
    assert_eq!(refused.code, 4, "{refused:?}");
    let at = refused.stderr.find("--device-memory reference=").unwrap_or_else(|| panic!("{refused:?}"));
    let enough: String =
        refused.stderr[at + "--device-memory ".len()..].chars().take_while(|c| !c.is_whitespace()).collect();
    let memory = ["--device", "cpu,reference", "--device-memory", "cpu=1kB", "--device-memory", &enough];
    let done = prompted(&memory).succeeded();
    assert!(done.stderr.contains("nothing on cpu"), "{}", done.stderr);
}

#[test]
fn what_cannot_be_placed_is_refused_by_name() {
    for (args, code, wanted) in [
        (&["--device", "cpu,nowhere"][..], 2, "'nowhere' is none of"),
        (&["--device", "cpu,"], 2, "'' is none of"),
        (&["--device", "cpu:7,cpu"], 3, "--device 7 is not available"),
        (&["--device-memory", "cpu=1GiB"], 2, "no devices are named"),
        (&["--device", "cpu,cpu", "--device-memory", "cuda:0=1GiB"], 2, "not among the devices"),
        (&["--device", "cpu,cpu", "--device-memory", "cpu=much"], 2, "is no size"),
        (&["--device", "cpu,cpu", "--place", "halves"], 2, "wanted auto, layers"),
        (&["--device", "cpu,cpu", "--place", "no/such/file.json"], 2, "no/such/file.json"),
        (&["--backend", "cpu", "--place", "layers"], 2, "leave --backend out"),
        (&["--device", "cpu,cpu", "--save-placement", "no/such/dir/p.json"], 2, "no/such/dir"),
    ] {
        let refused = prompted(args);
        assert!(refused.code == code && refused.stderr.contains(wanted), "{args:?}: {refused:?}");
    }
}

#[test]
fn other_commands_take_several_devices_too() {
    let file = fixtures::tiny_q4_k_m();
    let tiny = file.to_str().unwrap();
    let two = ["--device", "cpu,cpu"];
    let trace = |args: &[&str]| {
        let mut json = moe_run(
            &[&["trace", "-p", "Hi", "--json", "--stages", "all", "--positions", "all"], args].concat(),
        )
        .succeeded()
        .json();
        let run = json.as_object_mut().unwrap();
        run.retain(|key, _| {
            !key.contains("seconds") && !key.contains("time") && key != "device" && key != "backend"
        });
        json["layers"].clone()
    };
    assert_eq!(trace(&two), trace(&["--backend", "cpu"]));
    let parity = ["parity", "-m", tiny, "-p", "Hello there", "--against", "reference", "--forced", "--json"];
    let report = moe_run(&[&parity, &two[..]].concat()).succeeded().json();
    assert_eq!(report["verdict"], "pass");
    let plan =
        moe_run(&[&["graph", "--level", "plan", "--format", "json"], &two[..]].concat()).succeeded().json();
    let one =
        moe_run(&["graph", "--level", "plan", "--format", "json", "--backend", "cpu"]).succeeded().json();
    assert_eq!(plan["launches"].as_array().unwrap().len(), one["launches"].as_array().unwrap().len());
    let profile = moe_run(&[&["graph", "--profile", "--repetitions", "1"], &two[..]].concat()).succeeded();
    assert!(profile.stdout.contains("lm_head"), "{profile:?}");
    let bench = ["bench", "-m", tiny, "-p", "8", "-n", "2", "-r", "1", "--json", "--profile", "-t", "1"];
    let report = moe_run(&[&bench, &two[..]].concat()).succeeded().json();
    assert_eq!(report["results"].as_array().unwrap().len(), 2);
}

#[test]
fn experts_are_shared_on_the_command_line() {
    let one = prompted(&["--backend", "cpu"]).succeeded();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (routing, placement) = (path("routing.jsonl"), path("placement.json"));
    let _ = moe_run(&["trace", "-p", "What is 2+2?", "--backend", "cpu", "--routing", &routing]).succeeded();
    let experts = ["--device", "cpu,reference", "--place", "experts", "--device-memory", "cpu=15MiB"];
    let shared =
        prompted(&[&experts[..], &["--expert-stats", &routing, "--save-placement", &placement]].concat());
    let shared = shared.succeeded();
    assert_eq!(shared.stdout, one.stdout);
    for said in
        ["placed: layers 0-3 on cpu", " experts on reference", "experts shared, all else on the first"]
    {
        assert!(shared.stderr.contains(said), "{said}: {}", shared.stderr);
    }
    let given = prompted(&["--place", &placement]).succeeded();
    assert_eq!(given.stdout, one.stdout);
    // Too little for the model, enough for all but its experts: auto shares them.
    let auto = prompted(&["--device", "cpu,reference", "--device-memory", "cpu=15MiB"]).succeeded();
    assert!(auto.stderr.contains("experts shared, all else on the first"), "{}", auto.stderr);
    assert_eq!(auto.stdout, one.stdout);
    let parity = ["parity", "-p", "Hello", "--against", "reference", "--json"];
    let report = moe_run(&[&parity, &experts[..]].concat()).succeeded().json();
    assert_eq!(report["verdict"], "pass");
    for command in [&["bench", "-p", "8", "-n", "0"][..], &["graph", "--level", "plan"]] {
        let refused = moe_run(&[command, &experts[..]].concat());
        assert!(refused.code == 3 && refused.stderr.contains("no launches of a plan"), "{refused:?}");
    }
    std::fs::write(&routing, "{\"layer\": 99, \"experts\": [1]}\n").unwrap();
    let other = prompted(&[&experts[..], &["--expert-stats", &routing]].concat());
    assert!(other.code == 2 && other.stderr.contains("layer 99"), "{other:?}");
    std::fs::write(&routing, "nothing\n").unwrap();
    let broken = prompted(&[&experts[..], &["--expert-stats", &routing]].concat());
    assert!(broken.code == 2 && broken.stderr.contains("line 1"), "{broken:?}");
}

#[test]
fn a_placement_is_forecast_without_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("big.gguf");
    let file = file.to_str().unwrap();
    let synth = ["synth", "--preset", "qwen3-30b-a3b", "--dry-run", "-o", file];
    let _ = moe_run(&synth).succeeded();
    let place = |args: &[&str]| moe_run(&[&["place", "-m", file], args].concat());
    let report = place(&["--for", "4090+64GB", "--json", "-c", "65536"]).succeeded().json();
    let layers = report["forecast"]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 49);
    let shares: f64 =
        report["forecast"]["expert_share"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    for (device, budget) in report["budgets"].as_array().unwrap().iter().enumerate() {
        assert!(report["forecast"]["bytes"][device].as_u64().unwrap() <= budget.as_u64().unwrap());
    }
    let seconds: f64 = layers.iter().map(|layer| layer["seconds"].as_f64().unwrap()).sum();
    assert!((seconds - report["forecast"]["seconds"].as_f64().unwrap()).abs() < 1e-12);
    let table = place(&["--for", "8xH200"]).succeeded().stdout;
    assert!(
        table.contains("h200:7")
            && table.contains("tokens/s at most")
            && table.contains("with --kv-type q8_0")
    );
    let small = place(&["--for", "3060"]);
    assert!(small.code == 4 && small.stderr.contains("the least that would do"), "{small:?}");
    for (args, wanted) in [
        (&["--for", "4091"][..], "neither a card that is known here"),
        (&["--for", "4090", "--device-memory", "5090:0=1GiB"], "not among the devices"),
        (&["--device", "cuda:0,cpu"], "give --bandwidth cuda:0="),
        (&["--for", "4090", "--save-placement", "p.json"], "no devices for --save-placement"),
    ] {
        let refused = place(args);
        assert!(refused.code == 2 && refused.stderr.contains(wanted), "{args:?}: {refused:?}");
    }
    let here =
        place(&["--device", "cuda:0,cpu", "--bandwidth", "cuda:0=936", "--device-memory", "cuda:0=8GiB"]);
    assert!(here.succeeded().stdout.contains("experts shared"));
}
