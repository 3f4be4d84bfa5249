//! Parity of intact sides: backends with each other, and with saved stages. No false alarms.

use moe_run_backends::parity::{Against, ForcedRun, Options, Report, Subject, compare};
use moe_run_backends::taps::tensor_set::TensorSet;
use moe_run_backends::tolerance::Relation;
use moe_run_backends::{
    Activations, Backend, CompileOptions, KvType, WeightSource, reference::Reference, registry,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::fixtures;
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
    };
    compare(&model.graph, &weights, subject, against, &options).unwrap()
}

/// The largest share of its tolerance that an op used, and which.
fn closest(report: &Report) -> (f64, String) {
    let share = |c: &&moe_run_backends::parity::OpCheck| c.local_error / c.tolerance;
    let worst = report.ops.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
    worst.map_or((0.0, String::new()), |c| (share(&c), format!("{} {:.2e}", c.op, c.local_error)))
}

fn against_stages(stem: &str, model: &Path, stages: &Path) {
    let model = Model::open(model).unwrap();
    let set = TensorSet::open(stages).unwrap();
    let tokens = set.tokens().unwrap();
    for backend in registry::all() {
        for decode_tokens in [0, tokens.len() - 1] {
            let compile = CompileOptions {
                activations: Some(Activations::F32),
                kv_type: KvType::F32,
                ..CompileOptions::default()
            };
            let report = parity(
                &model,
                backend.as_ref(),
                Against::Saved(&set),
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

#[test]
fn every_activation_setting_against_the_reference_is_no_alarm() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let tokens: Vec<TokenId> = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198].map(TokenId).into();
    for backend in registry::all() {
        for activations in Activations::ALL {
            for kv_type in KvType::ALL {
                for decode_tokens in [0, 11] {
                    let compile = CompileOptions {
                        activations: Some(*activations),
                        kv_type: *kv_type,
                        ..CompileOptions::default()
                    };
                    let against = Against::Backend(&Reference, None);
                    let weights: Arc<dyn WeightSource> = model.file.clone();
                    let probe = CompileOptions { ctx_size: 64, ..compile.clone() };
                    if let Err(error) = backend.compile(&model.graph, weights, &probe) {
                        println!("{} {activations} {kv_type}: not there: {error}", backend.name());
                        continue;
                    }
                    let report =
                        parity(&model, backend.as_ref(), against, tokens.clone(), decode_tokens, compile);
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
