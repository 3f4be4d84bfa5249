//! A model in each format from end to end: what synth writes, read again, on every backend against the reference.

use moe_run_backends::reference::Reference;
use moe_run_backends::{Activations, CompileOptions, KvType, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::quant::Format;
use moe_run_graph::synth::{PRESETS, Preset, Synth, SynthOptions};
use moe_run_inspect::parity::{Against, ForcedRun, Options, Subject, compare};
use moe_run_inspect::tolerance::Relation;
use moe_run_tests::cli::run;
use moe_run_tests::subjects;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// A model of the presets' kind with rows of 256 elements: a block of the longest.
static SMALL: Preset = Preset {
    name: "small",
    num_hidden_layers: 1,
    hidden_size: 256,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    num_experts: 8,
    num_experts_per_tok: 2,
    moe_intermediate_size: 256,
    vocab_size: 256,
    ..PRESETS[0]
};

fn write(path: &Path, format: Format) {
    let options = SynthOptions {
        preset: &SMALL,
        num_hidden_layers: None,
        seed: 5,
        vocabulary: None,
        format: Some(format),
    };
    let out = File::create(path).unwrap();
    Synth::new(&options).unwrap().write(out, NonZeroUsize::MIN, |_| ControlFlow::Continue(())).unwrap();
}

/// Every operation of the pass, its inputs replaced by the reference's: a prompt and steps of one token.
#[test]
fn a_model_in_each_format_is_the_references_on_every_backend() {
    let dir = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        let path = dir.path().join(format!("{format}.gguf"));
        write(&path, format);
        let model = Model::open(&path).unwrap();
        let quantized = model.graph.weights.iter().filter(|w| w.format == format).count();
        assert!(quantized >= 9, "{format}: {quantized} matrices");
        let weights: Arc<dyn WeightSource> = model.file.clone();
        for subject in subjects() {
            let backend = subject.backend.as_ref();
            for (activations, decode_tokens) in [(Activations::Q8, 2), (Activations::F32, 0)] {
                let options = Options {
                    tokens: (0..12).map(|i| TokenId(i * 19 % 256)).collect(),
                    decode_tokens,
                    forced: ForcedRun::Always,
                    compile: CompileOptions {
                        activations: Some(activations),
                        kv_type: KvType::F32,
                        device: subject.device.clone(),
                        ..CompileOptions::default()
                    },
                    saved_relation: Relation::Different,
                    model: None,
                };
                let judged = Subject { backend, graph: &model.graph, weights: weights.clone(), hook: None };
                let against = Against::Backend(&Reference, None);
                let report = compare(&model.graph, &weights, judged, against, &options).unwrap();
                let what = format!("{format} on {} with {activations:?}", backend.name());
                assert!(report.passed(), "{what}: {:?}", report.first);
                assert!(report.ops.iter().all(|op| op.forced), "{what}");
            }
        }
    }
}

/// The command that writes such files, and those that read them.
#[test]
fn the_program_writes_and_inspects_each_format() {
    let program = env!("CARGO_BIN_EXE_moe-run-under-test");
    let dir = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        let path = dir.path().join("dry.gguf");
        let path = path.to_str().unwrap();
        let synth =
            ["synth", "--preset", "olmoe-1b-7b", "--layers", "1", "--dry-run", "-o", path, "--format"];
        let name = format.name().to_lowercase();
        let _ = run(program, synth.into_iter().chain([name.as_str()])).succeeded();
        let found = run(program, ["inspect", "-m", path, "--json"]).succeeded().stdout;
        assert!(found.contains(&format!("\"{format}\"")), "{format}");
    }
    let path = dir.path().join("none.gguf");
    let wrong = ["synth", "--preset", "olmoe-1b-7b", "--format", "q3_x", "-o", path.to_str().unwrap()];
    let refused = run(program, wrong);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("Q3_K"), "{}", refused.stderr);
}
