//! `moe-run graph` from outside: levels, forms, the file that it writes, what it refuses.

use moe_run_tests::cli::{Finished, run};
use moe_run_tests::fixtures;
use std::path::Path;

const BINARY: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn graph(model: &Path, args: &[&str]) -> Finished {
    run(BINARY, ["graph", "-m", model.to_str().unwrap()].iter().chain(args).copied())
}

#[test]
fn the_target_without_weights_is_dumped() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("target.gguf");
    let preset = ["synth", "--preset", "qwen3-coder-30b-a3b", "--dry-run", "-o", file.to_str().unwrap()];
    let _ = run(BINARY, preset).succeeded();
    let text =
        graph(&file, &["--backend", "reference", "--level", "plan", "--bandwidth", "60"]).succeeded().stdout;
    assert!(
        text.contains("layers 0–47 (48 of one structure") && text.contains("at 60.0 GB/s at best"),
        "{text}"
    );
}

/// The target's decode step on chips that are not here: each launch once, the grid within a wave, and the sum that the launches
/// add up to, the faster chip ahead.
#[test]
fn a_decode_step_is_predicted_for_chips_that_are_not_here() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("target.gguf");
    let preset = ["synth", "--preset", "qwen3-coder-30b-a3b", "--dry-run", "-o", file.to_str().unwrap()];
    let _ = run(BINARY, preset).succeeded();
    let rate = |chip: &str| -> f64 {
        let text = graph(&file, &["--backend", "cuda", "--level", "plan", "--for", chip]).succeeded().stdout;
        let line = text.lines().find(|l| l.contains("route_gate_up")).unwrap_or_else(|| panic!("{text}"));
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert!(cells[4].parse::<f64>().unwrap() <= 1.05, "waves: {line}");
        assert!(cells[6].parse::<f64>().unwrap() > 0.0, "issue: {line}");
        let (front, _) = text.split_once(" tokens/s").unwrap();
        front.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let [h200, h100, _, _, rtx_3090] = ["h200", "h100", "5090", "4090", "3090"].map(rate);
    assert!(h200 >= h100 && h100 > rtx_3090 && rtx_3090 > 50.0, "{h200} {h100} {rtx_3090}");

    for (args, said) in [
        (&["--backend", "cuda", "--for", "h300"][..], "wanted one of h200, h100, 5090, 4090, 3090"),
        (&["--backend", "cpu", "--for", "h100"], "give --backend cuda"),
        (&["--backend", "cuda", "--for", "h100", "--step-tokens", "2"], "a step of one token"),
        (&["--backend", "cuda", "--for", "h100", "--level", "lowered"], "give --level plan"),
    ] {
        let found = graph(&file, args);
        assert!(found.code != 0 && found.stderr.contains(said), "{args:?}: {found:#?}");
    }
}

#[test]
fn every_level_and_form_is_written() {
    let model = fixtures::tiny_q4_k_m();
    let dir = tempfile::tempdir().unwrap();
    for level in ["lowered", "optimized", "plan"] {
        for (form, said) in [
            ("text", "layers 0–3"),
            ("json", "\"schema_version\":1"),
            ("dot", "digraph"),
            ("html", "<!doctype html>"),
        ] {
            let file = dir.path().join(format!("{level}.{form}"));
            let args =
                ["--backend", "reference", "--level", level, "--format", form, "-o", file.to_str().unwrap()];
            assert_eq!(graph(&model, &args).succeeded().stdout, "");
            let written = std::fs::read_to_string(&file).unwrap();
            assert!(written.contains(said), "{level} {form}: {written}");
        }
    }
    let json = graph(&model, &["--format", "json", "--layers", "1..3"]).succeeded().json();
    assert_eq!(json["level"], "lowered");
    assert_eq!(json["layer_groups"][0]["layers"], serde_json::json!([1, 2]));
}

#[test]
fn a_profile_sets_times_beside_the_plan() {
    let args = [
        "--backend",
        "reference",
        "--profile",
        "--depth",
        "8",
        "-r",
        "2",
        "--bandwidth",
        "10",
        "--format",
        "json",
    ];
    let json = graph(&fixtures::tiny_q4_k_m(), &args).succeeded().json();
    assert_eq!((&json["level"], &json["profiled_steps"]), (&"plan".into(), &2.into()));
    assert_eq!(json["step"]["cached"], 9);
    let launches = json["launches"].as_array().unwrap();
    assert!(launches.iter().all(|l| l["measured"]["seconds"].as_f64().unwrap() > 0.0));
    let share: f64 = launches.iter().map(|l| l["measured"]["share"].as_f64().unwrap()).sum();
    assert!((share - 1.0).abs() < 1e-9, "{share}");
}

#[test]
fn a_plan_needs_no_device_and_says_so() {
    let planned = graph(&fixtures::tiny_q4_k_m(), &["--backend", "cuda", "--level", "plan", "--device", "7"]);
    assert!(planned.stderr.contains("only --profile opens one"), "{planned:#?}");
    assert!(planned.succeeded().stdout.contains("attention_step"));
}

#[test]
fn a_profile_opens_the_device_that_is_named() {
    let device = ["--backend", "cuda", "--device", "host-harness", "--profile"];
    let args = [&device[..], &["--depth", "2", "-r", "1", "--format", "json"]].concat();
    let json = graph(&fixtures::tiny_q4_k_m(), &args).succeeded().json();
    assert_eq!(json["backend"]["device"], "host-harness");
    assert!(json["totals"]["measured"]["seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn kernels_are_named_as_the_activations_have_them() {
    let model = fixtures::tiny_q4_k_m();
    let plan = |backend: &str, more: &[&str]| {
        let args = ["--backend", backend, "--level", "plan", "--format", "json"];
        graph(&model, &[&args[..], more].concat()).succeeded().json()
    };
    let kernels = |json: &serde_json::Value| -> Vec<String> {
        let launches = json["launches"].as_array().unwrap().iter();
        launches.map(|l| l["kernel"]["name"].as_str().unwrap().to_owned()).collect()
    };
    for backend in ["wgpu", "cuda"] {
        for tokens in ["1", "64"] {
            let own = plan(backend, &["--step-tokens", tokens]);
            assert_eq!(
                (&own["backend"]["activations"], &own["backend"]["q8_super_block"]),
                (&"q8".into(), &32.into())
            );
            // One kernel of a group takes the form of its activations as a parameter.
            let says_q8 = |k: &String| k.contains("q8") || k.contains("matmul_tiles");
            assert_eq!(
                kernels(&own).iter().any(says_q8),
                (backend, tokens) != ("cuda", "1"),
                "{backend} {tokens}"
            );
            assert_eq!(own, plan(backend, &["--step-tokens", tokens, "--activations", "q8"]), "the default");
            for activations in ["f32", "f16"] {
                let json = plan(backend, &["--step-tokens", tokens, "--activations", activations]);
                assert_eq!(json["backend"]["activations"], activations);
                assert!(json["backend"]["q8_super_block"].is_null());
                let kernels = kernels(&json);
                assert!(!kernels.iter().any(says_q8), "{backend} {activations} {tokens}: {kernels:?}");
                assert!(kernels.iter().any(|k| k.contains("matmul")), "{kernels:?}");
            }
        }
    }
    // CUDA's groups do not know f16.
    let launches = |activations: &str| kernels(&plan("cuda", &["--activations", activations])).len();
    assert!(launches("f16") > launches("f32"));
    assert_eq!(plan("cpu", &[])["backend"]["q8_super_block"], 256);
    assert_eq!(plan("reference", &[])["backend"]["activations"], "f32");
    let shader = |activations: &str| {
        let args = [
            "--backend",
            "wgpu",
            "--show-shader",
            "matmul",
            "--step-tokens",
            "64",
            "--activations",
            activations,
        ];
        graph(&model, &args).succeeded().stdout
    };
    assert!(shader("q8").contains("quantize_q8") && !shader("f32").contains("quantize_q8"));
    assert!(
        graph(&model, &["--backend", "wgpu", "--level", "plan", "--activations", "f32"])
            .succeeded()
            .stdout
            .contains("for wgpu, activations f32: ")
    );
}

#[test]
fn taps_that_are_asked_for_are_in_the_plan() {
    let args =
        ["--backend", "reference", "--level", "plan", "--format", "json", "--taps", "attn_scores,moe_router"];
    let json = graph(&fixtures::tiny_q4_k_m(), &args).succeeded().json();
    assert_eq!(json["totals"]["taps"], 8);
    let recomputed = json["launches"].as_array().unwrap().iter().filter(|l| l["recomputed"] == true).count();
    assert_eq!(recomputed, 4);
}

#[test]
fn what_cannot_be_is_refused_before_the_model_is_opened() {
    let absent = Path::new("/nonexistent/model.gguf");
    for (args, said) in [
        (&["--layers", "3..1"][..], "START below END"),
        (&["--layers", "x"], "START..END"),
        (&["--level", "plan", "--taps", "nope"], "unknown stage 'nope'"),
        (&["--level", "plan", "--taps", "all,embedding"], "'all' beside"),
        (&["--level", "lowered", "--profile"], "the lowered graph has no launches"),
        (&["--level", "lowered", "--taps", "all"], "the lowered graph has no launches"),
        (&["--bandwidth=-1"], "above 0"),
        (&["--level", "best"], "possible values"),
        (&["--repetitions", "3"], "--profile"),
        (&["--profile", "--device", "3"], "devices are numbered by backend"),
        (&["--level", "plan", "--device", "3"], "devices are numbered by backend"),
    ] {
        let refused = graph(absent, args);
        assert_eq!(refused.code, 2, "{args:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{args:?}: {}", refused.stderr);
        assert!(!refused.stderr.contains("nonexistent"), "{args:?} opened the model");
    }
    let tiny = fixtures::tiny_q4_k_m();
    for (args, code, said) in [
        (&["--layers", "2..9"][..], 2, "the model has 4"),
        (&["--depth", "100000"], 2, "do not fit"),
        (&["--backend", "reference", "--show-shader", "nope"], 2, "no launch 'nope'"),
        (&["--backend", "reference", "--show-shader", "0"], 3, "keeps no source"),
        (&["--backend", "cpu", "--profile", "--device", "nonsense"], 3, "--device nonsense is not available"),
        (&["-o", "/nonexistent/graph.txt"], 2, "there is no directory /nonexistent"),
    ] {
        let refused = graph(&tiny, args);
        assert_eq!(refused.code, code, "{args:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{args:?}: {}", refused.stderr);
    }
}
