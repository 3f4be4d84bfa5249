//! Parity of intact sides: backends with each other, and with saved stages. No false alarms.

use moe_run_backends::{
    Activations, Backend, CompileOptions, KvType, WeightSource, reference::Reference, registry,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_inspect::parity::{Against, ForcedRun, Options, Report, Subject, compare};
use moe_run_inspect::taps::tensor_set::TensorSet;
use moe_run_inspect::tolerance::Relation;
use moe_run_tests::{fixtures, subjects};
use std::path::Path;
use std::sync::Arc;

fn parity(
    model: &Model,
    backend: &dyn Backend,
    against: Against<'_>,
    tokens: Vec<TokenId>,
    decode_tokens: usize,
    compile: CompileOptions,
) -> Report {
    let weights: Arc<dyn WeightSource> = model.file.clone();
    let subject = Subject { backend, graph: &model.graph, weights: weights.clone(), hook: None };
    let options = Options {
        tokens,
        decode_tokens,
        forced: ForcedRun::Always,
        compile,
        saved_relation: Relation::Different,
        model: None,
    };
    compare(&model.graph, &weights, subject, against, &options).unwrap()
}

/// The largest share of its tolerance that an op used, and which.
fn closest(report: &Report) -> (f64, String) {
    let share = |c: &&moe_run_inspect::parity::OpCheck| c.local_error / c.tolerance;
    let worst = report.ops.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
    worst.map_or((0.0, String::new()), |c| (share(&c), format!("{} {:.2e}", c.op, c.local_error)))
}

fn against_stages(stem: &str, model: &Path, stages: &Path) {
    let model = Model::open(model).unwrap();
    let set = TensorSet::open(stages).unwrap();
    let tokens = set.tokens().unwrap();
    for subject in subjects() {
        let backend = subject.backend.as_ref();
        for decode_tokens in [0, tokens.len() - 1] {
            let compile = CompileOptions {
                activations: Some(Activations::F32),
                kv_type: KvType::F32,
                device: subject.device.clone(),
                ..CompileOptions::default()
            };
            let report = parity(
                &model,
                backend,
                Against::Saved(&set, &registry::all()),
                tokens.clone(),
                decode_tokens,
                compile,
            );
            println!("{:10} {stem:20} decode {decode_tokens}: {:?}", backend.name(), closest(&report));
            assert!(report.passed(), "{} {stem}: {:?}", backend.name(), report.first);
            let full = set.tensors.len() > 2;
            assert_eq!(report.ops.iter().all(|c| c.forced), full, "{stem}: ops with all inputs replaced");
            if full {
                assert!(report.missing_stages.is_empty(), "{stem}: {:?}", report.missing_stages);
                let nodes = model.graph.nodes.len() - model.graph.taps().count();
                assert!(report.ops.len() + 1 >= nodes, "{} of {nodes} ops were checked", report.ops.len());
            }
            assert_eq!(report.logits.unwrap().argmax_agreement, 1.0);
        }
    }
}

#[test]
fn stage_files_of_micro_models_are_no_alarm() {
    for (stem, model, stages) in fixtures::micro_models() {
        against_stages(stem, &model, &stages);
    }
}

#[test]
fn stage_files_of_tiny_models_are_no_alarm() {
    for (stem, model, stages) in fixtures::tiny_models() {
        against_stages(stem, &model, &stages);
    }
}

fn every_activation_setting_is_no_alarm(name: &str) {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let tokens: Vec<TokenId> = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198].map(TokenId).into();
    for subject in subjects().into_iter().filter(|s| s.backend.name() == name) {
        let backend = subject.backend.as_ref();
        for activations in Activations::ALL {
            for kv_type in KvType::ALL {
                for decode_tokens in [0, 11] {
                    let compile = CompileOptions {
                        activations: Some(*activations),
                        kv_type: *kv_type,
                        device: subject.device.clone(),
                        ..CompileOptions::default()
                    };
                    let against = Against::Backend(&Reference, None);
                    let weights: Arc<dyn WeightSource> = model.file.clone();
                    let probe = CompileOptions { ctx_size: 64, ..compile.clone() };
                    if let Err(error) = backend.compile(&model.graph, weights, &probe) {
                        println!("{} {activations} {kv_type}: not there: {error}", backend.name());
                        continue;
                    }
                    let report = parity(&model, backend, against, tokens.clone(), decode_tokens, compile);
                    println!(
                        "{:10} {activations} {kv_type} decode {decode_tokens}: {:?}, flips {}, worst free {:.2e}",
                        backend.name(),
                        closest(&report),
                        report.routing_flips.len(),
                        report.stages.iter().map(|s| s.relative_l2).fold(0.0, f64::max),
                    );
                    assert!(report.passed(), "{}: {:?}", backend.name(), report.first);
                }
            }
        }
    }
}

#[test]
fn every_activation_setting_of_the_reference_is_no_alarm() {
    every_activation_setting_is_no_alarm("reference");
}

#[test]
fn every_activation_setting_of_the_cpu_is_no_alarm() {
    every_activation_setting_is_no_alarm("cpu");
}

#[test]
fn every_activation_setting_of_wgpu_is_no_alarm() {
    every_activation_setting_is_no_alarm("wgpu");
}

#[test]
fn every_activation_setting_of_cuda_is_no_alarm() {
    every_activation_setting_is_no_alarm("cuda");
}

#[test]
fn the_program_says_pass_and_refuses_what_does_not_match() {
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    let tiny = fixtures::tiny_q4_k_m().display().to_string();
    let args = [
        "parity",
        "-m",
        &tiny,
        "--backend",
        "cpu",
        "--against",
        "reference",
        "--tokens",
        "1,2,3,4",
        "--forced",
    ];
    let report = moe_run_tests::cli::run(program, args.iter().copied().chain(["--json"])).succeeded().json();
    assert_eq!((&report["verdict"], &report["schema_version"]), (&"pass".into(), &1.into()));
    assert!(report["first"].is_null() && report["logits"]["argmax_agreement"] == 1.0);
    assert!(moe_run_tests::cli::run(program, args).succeeded().stdout.contains("\npass: "));
    let absent = ["parity", "-m", &tiny, "--against", "nowhere"];
    let finished = moe_run_tests::cli::run(program, absent);
    assert!(finished.code == 2 && finished.stderr.contains("neither a backend"), "{finished:#?}");
    // Stages of another model.
    let Some(other) = fixtures::find("micro/wide-q4_k.stages.safetensors") else { return };
    let other = other.display().to_string();
    let finished = moe_run_tests::cli::run(
        program,
        ["parity", "-m", &tiny, "--backend", "reference", "--against", &other],
    );
    assert_eq!(finished.code, 2, "{finished:#?}");
}

const TOKENS: &str = "3070,303,198,354,294";

/// Saves every stage of a run with 8-bit activations.
fn saved_q8(backend: &str, format: &str, dir: &Path) {
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    let (model, dir) = (fixtures::tiny_q4_k_m().display().to_string(), dir.display().to_string());
    let run = ["trace", "-m", &model, "--backend", backend, "--tokens", TOKENS, "--activations", "q8"];
    let save = ["--save-tensor", "all", "--save-tensor-layers", "0..4", "--save-tensor-format", format];
    let _ = moe_run_tests::cli::run(program, run.into_iter().chain(save).chain(["--save-tensor-dir", &dir]))
        .succeeded();
}

fn judge(args: &[&str]) -> moe_run_tests::cli::Finished {
    let model = fixtures::tiny_q4_k_m().display().to_string();
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    moe_run_tests::cli::run(program, ["parity", "-m", &model].iter().chain(args).copied())
}

#[test]
fn saved_stages_are_met_with_their_block_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (backend, block, format) in [("cpu", 256, "aprt"), ("reference", 32, "safetensors")] {
        saved_q8(backend, format, Path::new(&path(backend)));
        let mut places = vec![path(backend)];
        if format == "safetensors" {
            places.push(path("reference/stages.safetensors"));
        }
        for place in places {
            for judged in ["cpu", "reference"] {
                let report = judge(&["--backend", judged, "--against", &place, "--forced", "--json"]);
                let report = report.succeeded().json();
                assert_eq!(report["backend"]["executable"]["q8_super_block"], block, "{judged} {place}");
                assert_eq!((&report["verdict"], &report["relation"]), (&"pass".into(), &"same".into()));
            }
        }
    }
    let harness = ["--backend", "cuda", "--device", "host-harness", "--against"];
    let refused = judge(&[&harness[..], &[&path("cpu")]].concat());
    assert_eq!(refused.code, 3, "{refused:#?}");
    for said in ["blocks of 256", "backend cuda takes 32 only", "--backend cpu or reference"] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    let passed = judge(&[&harness[..], &[&path("reference"), "--json"]].concat()).succeeded().json();
    assert_eq!(passed["verdict"], "pass");
}

#[test]
fn saved_stages_that_were_rounded_otherwise_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stages = dir.path().join("stages").display().to_string();
    saved_q8("cpu", "aprt", Path::new(&stages));
    for (option, found, saved) in [("--activations", "f32", "q8"), ("--kv-type", "f32", "f16")] {
        let refused = judge(&["--backend", "reference", "--against", &stages, option, found]);
        assert_eq!(refused.code, 2, "{refused:#?}");
        let said = format!("saved with {option} {saved}; this run has {found}");
        assert!(refused.stderr.contains(&said), "{said}: {}", refused.stderr);
    }
}

#[test]
fn an_op_names_the_kernel_that_ran_under_the_activations() {
    for (activations, wanted, unwanted) in [("f32", "_f32", "q8"), ("q8", "_q8", "_f32 (q")] {
        let sides =
            ["--backend", "cuda", "--device", "host-harness", "--against", "cpu", "--forced", "--json"];
        let args = [&sides[..], &["--tokens", TOKENS, "--activations", activations]].concat();
        let report = judge(&args).succeeded().json();
        let ops = report["ops"].as_array().unwrap().iter();
        let kernels: Vec<&str> = ops.filter_map(|o| o["kernel"].as_str()).collect();
        assert!(kernels.iter().any(|k| k.contains(wanted)), "{activations}: {kernels:?}");
        assert!(!kernels.iter().any(|k| k.contains(unwanted)), "{activations}: {kernels:?}");
    }
}

#[test]
fn two_backends_take_a_block_that_both_have() {
    let harness = ["--backend", "cpu", "--against", "cuda", "--against-device", "host-harness"];
    let reference = ["--backend", "cpu", "--against", "reference", "--activations", "q8"];
    for (sides, block) in [(&harness[..], 32), (&reference, 256)] {
        let args = [sides, &["--tokens", TOKENS, "--forced", "--json"]].concat();
        let report = judge(&args).succeeded().json();
        assert_eq!(report["verdict"], "pass");
        for side in ["backend", "against"] {
            let executable = &report[side]["executable"];
            assert_eq!(executable["q8_super_block"], block, "{executable}");
            assert_eq!(executable["activations"], "q8", "{executable}");
        }
        let text = judge(&args[..args.len() - 1]).succeeded().stdout;
        let said = format!("activations q8 (blocks of {block} for super-block formats), KV cache f16");
        assert_eq!(text.matches(&said).count(), 2, "{text}");
    }
}

#[test]
fn a_divergence_is_saved_with_the_layer_before_and_nothing_else() {
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    let dir = tempfile::tempdir().unwrap();
    let file = moe_run_graph::gguf::GgufFile::open(fixtures::tiny_q4_k_m()).unwrap();
    // One block of o_proj in layer 2 gets another scale.
    let tensor = file.tensor("blk.2.attn_output.weight").unwrap();
    let mut bytes = std::fs::read(fixtures::tiny_q4_k_m()).unwrap();
    bytes[tensor.offset_bytes() + 4] ^= 0x1f;
    let broken = dir.path().join("broken.gguf");
    std::fs::write(&broken, bytes).unwrap();
    let run = |args: &[&str]| moe_run_tests::cli::run(program, args.iter().copied());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (intact, broken) = (fixtures::tiny_q4_k_m().display().to_string(), broken.display().to_string());
    let (stages, around) = (path("stages"), path("around"));
    let tokens = "3070,303,198,354,294";
    let save = ["--backend", "reference", "--tokens", tokens, "--activations", "f32", "--kv-type", "f32"];
    let trace = ["trace", "-m", &intact, "--save-tensor", "all", "--save-tensor-layers", "0..4"];
    let _ = run(&[&trace[..], &save, &["--save-tensor-dir", &stages]].concat()).succeeded();

    let parity = ["parity", "--backend", "cpu", "--against", &stages, "--save-tensor-dir", &around, "--json"];
    let passed = run(&[&parity[..], &["-m", &intact]].concat()).succeeded();
    assert_eq!(passed.json()["verdict"], "pass");
    assert!(!dir.path().join("around").exists(), "nothing diverged, and nothing is saved");

    let diverged = run(&[&parity[..], &["-m", &broken]].concat());
    assert_eq!(diverged.code, 1, "{diverged:#?}");
    assert_eq!(diverged.json()["first"]["op"], "layer-2/o_proj");
    let set = TensorSet::open(&dir.path().join("around/backend")).unwrap();
    let layers: std::collections::BTreeSet<&str> =
        set.tensors.keys().filter_map(|name| name.split_once('/')).map(|(layer, _)| layer).collect();
    assert_eq!(layers.into_iter().collect::<Vec<_>>(), ["layer-1", "layer-2"]);
    assert_eq!(set.tensors.len(), 2 * 22);
    assert!(!dir.path().join("around/against").exists(), "saved stages are there already");
    let diff = run(&["diff", &path("around/backend"), &stages, "--tolerance", "1e-4", "--json"]);
    assert_eq!(diff.code, 1, "{diff:#?}");
    // Again: what is there stays unless it is to be replaced.
    let refused = run(&[&parity[..], &["-m", &broken]].concat());
    assert!(refused.code == 2 && refused.stderr.contains("already exists"), "{refused:#?}");
}

#[test]
fn both_sides_of_a_divergence_are_saved() {
    use moe_run_inspect::parity::{Comparison, SaveAround};
    use moe_run_inspect::taps::save::{ModelIdentity, SaveOptions};
    use moe_run_inspect::taps::tensor_file::FileFormat;
    use moe_run_tests::faults::Fault;
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let weights: Arc<dyn WeightSource> = model.file.clone();
    let cpu = moe_run_backends::registry::by_name("cpu").unwrap();
    let injected = Fault::SkippedKNorm.inject(&model.graph, &weights, 3, 0).unwrap();
    let subject = Subject {
        backend: cpu.as_ref(),
        graph: &injected.graph,
        weights: injected.weights.clone(),
        hook: None,
    };
    let options = Options {
        tokens: [3070, 303, 198, 354, 294].map(TokenId).into(),
        decode_tokens: 2,
        forced: ForcedRun::OnDivergence,
        compile: CompileOptions { activations: Some(Activations::F32), ..CompileOptions::default() },
        saved_relation: Relation::Same,
        model: None,
    };
    let against = Against::Backend(&Reference, None);
    let mut comparison = Comparison::new(&model.graph, &weights, subject, against, &options).unwrap();
    let report = comparison.report().unwrap();
    assert_eq!(report.first.as_ref().map(|f| f.op.as_str()), Some("layer-3/k_norm"));
    let dir = tempfile::tempdir().unwrap();
    let save = SaveAround {
        options: SaveOptions { dir: dir.path().to_owned(), format: FileFormat::Aprt, overwrite: false },
        model: ModelIdentity::of(&model.file),
        architecture: &model.config.architecture,
    };
    struct Nobody;
    impl moe_run_backends::Observer for Nobody {}
    let saved = comparison.save_around(&report, &save, &mut Nobody).unwrap();
    let [ours, theirs] = &saved[..] else { panic!("{saved:?}") };
    let (ours, theirs) = (TensorSet::open(ours).unwrap(), TensorSet::open(theirs).unwrap());
    assert!(ours.tensors.keys().eq(theirs.tensors.keys()) && ours.tensors.len() == 2 * 22);
    let distance = |name: &str| {
        moe_run_tests::relative_l2(&ours.tensors[name].read().unwrap(), &theirs.tensors[name].read().unwrap())
    };
    assert!(distance("layer-2/post_ffn_residual") < 1e-4 && distance("layer-3/q_norm") < 1e-4);
    assert!(distance("layer-3/k_norm") > 1e-2);
}
