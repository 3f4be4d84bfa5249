//! The CUDA backend's real path, from the driver's library to recorded graphs, on a stand-in for that library which runs the
//! kernels' host harness and is strict about every call (stand-in/stand_in.h). Every run here also asserts that no call was
//! one that the driver forbids, and that nothing was left behind.

use moe_run::ExitCode;
use moe_run_tests::cli::Finished;
use moe_run_tests::fixtures;
use moe_run_tests::stand_in::{self, OnStandIn};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

/// `moe-run` on the stand-in; `None` where there is none.
fn moe_run(environment: &[(&str, &str)], args: &[&str]) -> Option<OnStandIn> {
    Some(stand_in::run(stand_in::folder()?, PROGRAM, environment, args))
}

/// The demo model's answer to "Hello" on a backend.
fn hello(environment: &[(&str, &str)], backend: &str, more: &[&str]) -> Option<OnStandIn> {
    let args = ["-p", "Hello", "--temp", "0", "--backend", backend];
    let limit: &[&str] = if more.contains(&"-n") { &[] } else { &["-n", "6"] };
    moe_run(environment, &[&args[..], limit, more].concat())
}

fn refused(found: &Finished, code: ExitCode, texts: &[&str]) {
    assert_eq!(found.code, code as i32, "{found:#?}");
    for text in texts {
        assert!(found.stderr.contains(text), "{text}: {found:#?}");
    }
}

/// Chips, drivers, and whether launches overlap there. The first gives the most answers, the first two all with --full.
const CHIPS: [(&str, &str, &str, bool); 5] = [
    ("9.0", "12040", "queued", true),
    ("8.0", "12040", "queued", false),
    ("7.5", "12020", "queued", false),
    ("9.0", "12030", "eager", false),
    ("12.0", "13000", "eager", true),
];

#[test]
fn greedy_answers_token_for_token() {
    let text = std::fs::read_to_string(fixtures::find("tiny/greedy.json").unwrap()).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    for (i, (capability, driver, order, overlaps)) in CHIPS.into_iter().enumerate() {
        let environment =
            [("STAND_IN_CAPABILITY", capability), ("STAND_IN_DRIVER", driver), ("STAND_IN_ORDER", order)];
        for stem in ["q4_k_m", "q8_0"] {
            let count = match (fixtures::full(), i, stem) {
                (true, 0 | 1, _) => usize::MAX,
                (_, 0, "q4_k_m") => 3,
                (_, _, "q4_k_m") => 1,
                _ => 0,
            };
            if count == 0 {
                continue;
            }
            let Some(model) = fixtures::find(&format!("tiny/tiny-qwen3moe-{stem}.gguf")) else { continue };
            for case in cases[stem].as_array().unwrap().iter().take(count) {
                let (model, prompt) = (model.to_str().unwrap(), case["prompt"].as_str().unwrap());
                let args = ["-m", model, "-p", prompt, "--temp", "0", "--json", "--backend", "cuda"];
                let Some(found) = moe_run(&environment, &args) else { return };
                let counts = found.counts.clone();
                let count = |what: &str| counts.get(what).copied().unwrap_or(0);
                let report = found.finished.succeeded().json();
                for (key, wanted) in [
                    ("text", "output"),
                    ("prompt_tokens", "prompt_tokens"),
                    ("output_tokens", "output_tokens"),
                ] {
                    assert_eq!(report[key], case[wanted], "{environment:?} {stem}: {prompt}");
                }
                assert_eq!(report["device"], "Stand-in GPU");
                // One recording, replayed for every token but the first; all through the driver, which was given back.
                assert_eq!(count("graphs recorded"), 1, "{counts:?}");
                let tokens = case["output_tokens"].as_array().unwrap().len() as u64;
                assert!(count("graph launches") + 1 >= tokens, "{counts:?}");
                assert_eq!(count("overlapping launches") > 0, overlaps, "{counts:?}");
                assert_eq!(count("plain launches") > 0, !overlaps, "{counts:?}");
                assert_eq!(count("contexts retained"), 1, "{counts:?}");
                assert_eq!(count("contexts released"), 1, "{counts:?}");
                // The modules that the plans need, before anything is launched, and no others.
                assert!((10..30).contains(&count("modules loaded")), "{counts:?}");
                assert_eq!(count("modules loaded behind a launch"), 0, "{counts:?}");
                assert_eq!(count("modules loaded again"), 0, "{counts:?}");
            }
        }
    }
}

/// Weights that are loaded twice, and run by two threads at once, have one context and one set of modules; and every module is
/// one that a driver takes, every entry with the parameters of the kernel's source.
#[test]
fn a_process_has_one_context_and_loads_each_module_once() {
    let Some(folder) = stand_in::folder() else { return };
    let program = env!("CARGO_BIN_EXE_shared-device");
    let found = stand_in::run(folder, program, &[], &[]);
    let once = |found: &OnStandIn| {
        let names = ["contexts retained", "contexts released", "modules loaded again"];
        assert_eq!(names.map(|name| found.count(name)), [1, 1, 0], "{found:#?}");
    };
    once(&found);
    assert_eq!(found.count("modules loaded behind a launch"), 0, "{found:#?}");
    assert_eq!(found.count("graphs recorded"), 2, "{found:#?}");
    let lines: Vec<_> = found.finished.succeeded().stdout.lines().map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{lines:?}");

    let found = stand_in::run(folder, program, &[], &["all-kernels"]);
    once(&found);
    assert!(found.count("entries compared") >= 60 && found.count("modules loaded") >= 40, "{found:#?}");
}

/// Prompt and recorded steps: the same bits through the driver as straight on the harness.
#[test]
fn logits_have_the_harness_s_bits() {
    let Some(folder) = stand_in::folder() else { return };
    let program = env!("CARGO_BIN_EXE_decode-logits");
    for activations in ["q8", "f32"] {
        let run = |environment: &[(&str, &str)], more: &[&str]| {
            let found = stand_in::run(folder, program, environment, &[&[activations], more].concat());
            let graphs = found.count("graph launches");
            (found.finished.succeeded().stdout, graphs)
        };
        let (wanted, graphs) = run(&[], &["host-harness"]);
        assert_eq!((wanted.lines().count(), graphs), (6, 0));
        let chips = [("9.0", "queued"), ("8.0", "queued"), ("9.0", "eager"), ("8.0", "eager")];
        // In 8 bits on two chips; the rest with --full.
        let count = if fixtures::full() { 4 } else { 2 };
        for (capability, order) in chips.into_iter().take(if activations == "q8" { count } else { count / 2 })
        {
            let environment = [("STAND_IN_CAPABILITY", capability), ("STAND_IN_ORDER", order)];
            let (found, graphs) = run(&environment, &[]);
            assert_eq!(found, wanted, "{activations} {environment:?}");
            // The first of six is not recorded.
            assert_eq!(graphs, 5);
        }
        if activations == "f32" && !fixtures::full() {
            continue;
        }
        // Before 8.0 there are no matrix units: the harness without them.
        let (wanted, _) = run(&[("MOE_RUN_CUDA_OFF", "matrix-units")], &["host-harness"]);
        let (found, _) = run(&[("STAND_IN_CAPABILITY", "7.5")], &[]);
        assert_eq!(found, wanted, "{activations} on 7.5");
        // And without recording: the same kernels, so the same bits.
        let (found, graphs) = run(&[("MOE_RUN_CUDA_OFF", "graph,matrix-units")], &[]);
        assert_eq!((found, graphs), (wanted, 0), "{activations}, no graph");
    }
}

/// What three more tokens cost the host: three steps, each one graph, one small copy into page-locked memory and one wait for
/// it: greedy while the next step runs, sampled for the candidates alone. Nothing is launched beside the graph, nothing is
/// allocated, and nothing waits for the whole queue.
#[test]
fn a_token_costs_one_graph_and_one_wait_for_an_event() {
    // Both answers are longer than seven tokens.
    for sampling in
        [&["--temp", "0"][..], &["--temp", "0.7", "--top-k", "20", "--top-p", "0.8", "--seed", "3"]]
    {
        let tokens = |n: &str| {
            let args = ["-p", "Hello", "--backend", "cuda", "-n", n];
            moe_run(&[], &[&args[..], sampling].concat())
        };
        let (Some(few), Some(more)) = (tokens("4"), tokens("7")) else { return };
        let added = |what: &str| more.count(what) - few.count(what);
        assert_eq!(added("graph launches"), 3, "{few:#?} {more:#?}");
        assert_eq!(added("event synchronizations"), 3, "{few:#?} {more:#?}");
        // What was chosen.
        assert_eq!(added("copies to page-locked memory"), 3);
        // The step's inputs.
        assert_eq!(added("copies from pageable memory"), 3);
        for what in [
            "stream synchronizations",
            "copies to pageable memory",
            "allocations",
            "graphs recorded",
            "plain launches",
            "overlapping launches",
        ] {
            assert_eq!(added(what), 0, "{sampling:?} {what}: {few:#?} {more:#?}");
        }
        // Six launches in each of four layers, embedding, output, and two that choose.
        assert_eq!(added("kernels run"), 3 * (6 * 4 + 2 + 2));
    }
}

/// Sampling reads candidates back; `trace` and `bench` time launches with events; `perplexity` reads many rows.
#[test]
fn other_commands_use_the_driver_as_it_wants() {
    let Some(sampled) = moe_run(&[], &["-p", "Hello", "--seed", "3", "-n", "5", "--backend", "cuda"]) else {
        return;
    };
    let harness = ["-p", "Hello", "--seed", "3", "-n", "5", "--backend", "cuda", "--device", "host-harness"];
    let wanted = moe_run(&[], &harness).unwrap();
    assert_eq!(sampled.finished.succeeded().stdout, wanted.finished.succeeded().stdout);

    let trace = ["trace", "-p", "Hello", "--json", "--backend", "cuda"];
    let found = moe_run(&[], &trace).unwrap();
    assert!(found.count("event synchronizations") > 20, "{found:#?}");
    let wanted = moe_run(&[], &[&trace[..], &["--device", "host-harness"]].concat()).unwrap();
    let (found, wanted) = (found.finished.succeeded().json(), wanted.finished.succeeded().json());
    assert!(found["layers"].is_array(), "{found}");
    assert_eq!(found["layers"], wanted["layers"]);

    let bench = ["bench", "--backend", "cuda", "-p", "4", "-n", "2", "-r", "1", "--json"];
    let found = moe_run(&[("STAND_IN_MEMORY_BYTES", "100000000")], &bench).unwrap();
    assert!(found.count("graph launches") > 0, "{found:#?}");
    assert!(!found.finished.succeeded().json().is_null());
}

/// Stored stages in f32, as a prompt and with the last token decoded; with --full every model, and the self-test.
#[test]
fn stages_match_the_stored_ones() {
    for (stem, model, stages) in fixtures::micro_models() {
        if !fixtures::full() && !stem.starts_with("mixed") && !stem.starts_with("dense") {
            continue;
        }
        let (model, stages) = (model.to_str().unwrap(), stages.to_str().unwrap());
        for (capability, decode) in [("8.0", "0"), ("9.0", "1")] {
            let args = ["parity", "-m", model, "--backend", "cuda", "--against", stages, "--decode", decode];
            let Some(found) = moe_run(&[("STAND_IN_CAPABILITY", capability)], &args) else { return };
            assert!(found.count("kernels run") > 20, "{stem}: {found:#?}");
            assert_eq!(found.finished.code, 0, "{stem}, {decode} decoded: {found:#?}");
        }
    }
    if fixtures::full() {
        let Some(found) = moe_run(&[], &["selftest", "--backend", "cuda"]) else { return };
        // Hundreds of small graphs on one device.
        let once = ["contexts retained", "contexts released", "modules loaded again"];
        assert_eq!(once.map(|name| found.count(name)), [1, 1, 0], "{found:#?}");
        let found = found.finished.succeeded();
        assert!(found.stdout.contains("passed in "), "{found:#?}");
    }
}

/// The self-test says which case failed, though nothing can be tested behind it; and passes over a chip that cannot be used.
#[test]
fn the_self_test_names_what_failed() {
    let Some(found) = moe_run(&[("STAND_IN_FAIL", "rms_norm:3:700")], &["selftest", "--backend", "cuda"])
    else {
        return;
    };
    let found = found.finished;
    refused(&found, ExitCode::Verdict, &["not tested any further", "an illegal memory access"]);
    let line = found.stdout.lines().find(|l| l.contains("rms_norm") && l.contains("FAILED"));
    assert!(line.is_some() && found.stdout.contains("cuda on Stand-in GPU"), "{found:#?}");

    let environment = [("STAND_IN_CAPABILITY", "6.1"), ("VK_DRIVER_FILES", "/nonexistent")];
    let found = moe_run(&environment, &["selftest"]).unwrap().finished.succeeded();
    assert!(found.stderr.contains("not tested: Stand-in GPU, which cannot be used: compute capability 6.1"));
}

#[test]
fn devices_lists_it() {
    let Some(found) = moe_run(&[("STAND_IN_CAPABILITY", "8.6")], &["devices"]) else { return };
    let found = found.finished.succeeded();
    for text in ["0: Stand-in GPU (GPU, 4.0 GiB)", "compute capability: 8.6", "driver: CUDA 12.4"] {
        assert!(found.stdout.contains(text), "{text}: {found:#?}");
    }
    let found = moe_run(&[("STAND_IN_CAPABILITY", "6.1")], &["devices"]).unwrap().finished.succeeded();
    for text in ["Stand-in GPU (cannot be used, ", "not usable: compute capability 6.1, wanted 7.5 or newer"]
    {
        assert!(found.stdout.contains(text), "{text}: {found:#?}");
    }
}

/// What is refused before anything runs; `auto` goes on with the CPU and gives the same reason.
#[test]
fn what_cannot_run_is_refused_and_auto_goes_on() {
    let unsupported: [(&str, &str, &[&str]); 6] = [
        ("STAND_IN_DRIVER", "11080", &["the driver is too old: found CUDA 11.8, wanted 12.2 or newer"]),
        ("STAND_IN_CAPABILITY", "6.1", &["Stand-in GPU has compute capability 6.1, wanted 7.5 or newer"]),
        ("STAND_IN_DEVICES", "0", &["the driver is there, but no NVIDIA GPU"]),
        ("STAND_IN_RETAIN", "2", &["Stand-in GPU cannot be opened: other processes hold its memory"]),
        ("STAND_IN_RETAIN", "46", &["Stand-in GPU cannot be opened: another process holds it alone"]),
        ("STAND_IN_MEMORY_BYTES", "3000000", &["bytes of weights", "3000000 available", "do not fit"]),
    ];
    for (name, value, texts) in unsupported {
        let Some(found) = hello(&[(name, value)], "cuda", &[]) else { return };
        let code = if name.contains("MEMORY") { ExitCode::Failed } else { ExitCode::Unsupported };
        refused(&found.finished, code, &[texts, &["--backend cpu"]].concat());
        assert!(found.finished.stdout.is_empty(), "{found:#?}");

        let auto = hello(&[(name, value)], "auto", &[]).unwrap().finished.succeeded();
        assert_eq!(auto.stdout.trim(), "Hello! How can I help");
        for text in
            [texts, &["auto: cpu is the fastest backend", "not taken:", "runs: all 4 layers on cpu"]].concat()
        {
            assert!(auto.stderr.contains(text), "{text}: {auto:#?}");
        }
    }
}

/// The number in front of a text.
fn number_before(text: &str, what: &str) -> u64 {
    let (front, _) = text.split_once(what).unwrap_or_else(|| panic!("no {what:?} in {text}"));
    let digits = front.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("no number before {what:?} in {text}"))
}

/// Another process holds the memory: the sum, what is held, and a context that does fit.
#[test]
fn memory_that_another_process_holds_is_counted() {
    let all: u64 = 4 << 30;
    let with = |held: u64, more: &[&str]| {
        hello(&[("STAND_IN_HELD_BYTES", &held.to_string())], "cuda", more).map(|f| f.finished)
    };
    let Some(found) = with(all - 20_000_000, &["-c", "2048"]) else { return };
    refused(&found, ExitCode::Failed, &["by other processes too (see nvidia-smi)", " positions: "]);
    let wanted: u64 = ["bytes of weights", "of working memory", "of KV cache for 2048 positions"]
        .iter()
        .map(|what| number_before(&found.stderr, &format!(" {what}")))
        .sum();
    assert_eq!(number_before(&found.stderr, " bytes needed"), wanted);
    let (_, advice) = found.stderr.split_once("--ctx-size ").expect("advice");
    let fits = advice.split(' ').next().unwrap();
    assert!(fits.parse::<usize>().unwrap() > 16, "{found:#?}");
    let found = with(all - 20_000_000, &["-c", fits]).unwrap();
    assert_eq!((found.code, found.stdout.trim()), (0, "Hello! How can I help"), "{found:#?}");

    // It comes in between the check and the allocations: of weights, and of the cache.
    for allocation in ["20", "70"] {
        let held = all.to_string();
        let environment = [("STAND_IN_HELD_BYTES", held.as_str()), ("STAND_IN_HELD_FROM", allocation)];
        let found = hello(&environment, "cuda", &[]).unwrap();
        assert!(found.count("allocations") < 80, "{found:#?}");
        refused(&found.finished, ExitCode::Failed, &["another process may hold memory (see nvidia-smi)"]);
    }
}

/// A kernel fails on the way: what was generated until then stays, and the advice names the operation.
#[test]
fn a_failing_kernel_is_reported_and_can_be_named() {
    let Some(whole) = hello(&[], "cuda", &[]) else { return };
    let whole = whole.finished.succeeded();
    // In the prompt's step, in the first layer of the first token's, and in the last layer of the third's, a recorded one.
    let cases = [
        ("router:2:700", "layer-1/router_topk (router)", "an illegal memory access was encountered", false),
        ("attention_step:1:719", "attention_step (layer-0/", "unspecified launch failure", true),
        ("down_combine:12:700", "down_combine (layer-3/", "an illegal memory access was encountered", true),
    ];
    for (fail, name, error, has_text) in cases {
        let found = hello(&[("STAND_IN_FAIL", fail)], "cuda", &[]).unwrap();
        assert_eq!(found.count("misuses"), 0);
        let found = found.finished;
        let advice = ["the step at position ", "MOE_RUN_CUDA_OFF=graph", error, "device Stand-in GPU"];
        refused(&found, ExitCode::Failed, &advice);
        assert!(!found.stderr.contains(name), "{found:#?}");
        let text = found.stdout.trim_end();
        assert!(whole.stdout.starts_with(text) && text.is_empty() != has_text, "{fail}: {found:#?}");
        if has_text {
            assert!(found.stderr.contains("what was generated until then is kept"), "{found:#?}");
        }

        let environment = [("STAND_IN_FAIL", fail), ("MOE_RUN_CUDA_OFF", "graph")];
        let named = hello(&environment, "cuda", &[]).unwrap();
        assert_eq!(named.count("graph launches"), 0);
        refused(&named.finished, ExitCode::Failed, &[name, error]);
        assert!(whole.stdout.starts_with(named.finished.stdout.trim_end()), "{named:#?}");
    }
}
