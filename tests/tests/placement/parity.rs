//! Parity judges a model on several devices as any other, and names a fault on whichever device it is.

use super::{backend, borders, model, placed, text};
use moe_run_backends::reference::Reference;
use moe_run_backends::{Activations, Backend, CompileOptions, Observer, WeightSource};
use moe_run_graph::Model;
use moe_run_inspect::parity::{Against, ForcedRun, Options, Report, Subject, Verdict, compare};
use moe_run_inspect::tolerance::Relation;
use moe_run_tests::faults::{Fault, Injected};
use moe_run_tests::fixtures;
use std::sync::Arc;

fn parity(model: &Model, backend: &dyn Backend, injected: &mut Injected, activations: Activations) -> Report {
    let weights: Arc<dyn WeightSource> = model.file.clone();
    let subject = Subject {
        backend,
        graph: &injected.graph,
        weights: injected.weights.clone(),
        hook: injected.hook.as_mut().map(|hook| hook as &mut dyn Observer),
    };
    let options = Options {
        tokens: text(model, 9, 10),
        decode_tokens: 2,
        forced: ForcedRun::Always,
        compile: CompileOptions { activations: Some(activations), threads: Some(1), ..CompileOptions::default() },
        saved_relation: Relation::Same,
        model: None,
    };
    compare(&model.graph, &weights, subject, Against::Backend(&Reference, None), &options).unwrap()
}

fn intact(model: &Model) -> Injected {
    let weights: Arc<dyn WeightSource> = model.file.clone();
    Injected { graph: model.graph.clone(), weights, hook: None }
}

#[test]
fn every_mix_of_devices_is_within_tolerance() {
    let mut mixes = vec![["cpu", "cpu"], ["cpu", "cuda"], ["cuda", "cpu"], ["cuda", "cuda"]];
    if backend("wgpu").devices().is_ok_and(|devices| !devices.is_empty()) {
        mixes.extend([["wgpu", "cpu"], ["cpu", "wgpu"]]);
    } else {
        println!("SKIPPED: no device of backend wgpu");
    }
    for stem in ["micro/mixed-q4_k_m", "arch/deepseek2/v3", "arch/gpt-oss/mxfp4", "arch/jamba/tiny"] {
        let Some(path) = fixtures::find(&format!("{stem}.gguf")) else { continue };
        let model = model(&path);
        for mix in &mixes {
            let two = placed(mix, &borders(&model)[..1], model.graph.num_layers);
            let report = parity(&model, &two, &mut intact(&model), Activations::Q8);
            assert_eq!(report.verdict, Verdict::Pass, "{stem} on {mix:?}: {}", report.conclusion);
            assert!(report.missing_stages.is_empty(), "{stem} on {mix:?}: {:?}", report.missing_stages);
        }
    }
}

#[test]
fn a_fault_is_named_on_either_side_of_a_cut() {
    let model = model(&fixtures::tiny_q4_k_m());
    let (layers, weights) = (model.graph.num_layers, model.file.clone() as Arc<dyn WeightSource>);
    for mix in [["cpu", "cpu"], ["cuda", "cpu"]] {
        let two = placed(&mix, &[layers / 2], layers);
        for layer in [layers / 2 - 1, layers / 2] {
            for fault in
                [Fault::WrongExpert, Fault::DroppedExpert, Fault::SwappedScaleNibble, Fault::ResidualTwice, Fault::RopeBase]
            {
                let mut injected = fault.inject(&model.graph, &weights, layer, 3).unwrap();
                let report = parity(&model, &two, &mut injected, Activations::F32);
                let named = report.first.as_ref().map(|first| first.op.clone());
                if fault == Fault::WrongExpert && named.is_none() {
                    continue; // no token chose that expert
                }
                assert_eq!(named, Some(format!("layer-{layer}/{}", fault.named())), "{fault:?} on {mix:?}");
            }
        }
    }
}
