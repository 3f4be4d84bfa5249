//! Parity judges a model on several devices as any other, and names a fault on whichever device it is.

use super::experts::dealt;
use super::{backend, borders, model, placed, text};
use moe_run_backends::reference::Reference;
use moe_run_backends::{Activations, Backend, CompileOptions, Observer, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::passes::expert_parts;
use moe_run_inspect::parity::{Against, ForcedRun, Options, Report, Subject, Verdict, compare};
use moe_run_inspect::tolerance::Relation;
use moe_run_tests::faults::{Fault, Injected};
use moe_run_tests::fixtures;
use std::collections::HashMap;
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
        compile: CompileOptions {
            activations: Some(activations),
            threads: Some(1),
            ..CompileOptions::default()
        },
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
    const Q8: Activations = Activations::Q8;
    // A last bit of a GPU moves 8-bit steps, which in a random model grow from layer to layer: wgpu's are judged in f32.
    const F32: Activations = Activations::F32;
    let has_wgpu = backend("wgpu").devices().is_ok_and(|devices| !devices.is_empty());
    if !has_wgpu {
        println!("SKIPPED: no device of backend wgpu");
    }
    let cases = [
        ("micro/mixed-q4_k_m", &[(["cpu", "cpu"], Q8), (["cuda", "cpu"], Q8), (["wgpu", "cpu"], F32)][..]),
        ("arch/deepseek2/v3", &[(["cpu", "cuda"], Q8), (["cpu", "wgpu"], F32)]),
        ("arch/gpt-oss/mxfp4", &[(["cuda", "cuda"], Q8)]),
        ("arch/jamba/tiny", &[(["cpu", "cpu"], Q8), (["cuda", "cpu"], Q8)]),
    ];
    for (stem, mixes) in cases {
        let Some(path) = fixtures::find(&format!("{stem}.gguf")) else { continue };
        let model = model(&path);
        for (mix, activations) in mixes.iter().filter(|(mix, _)| has_wgpu || !mix.contains(&"wgpu")) {
            let two = placed(mix, &borders(&model)[..1], model.graph.num_layers);
            let report = parity(&model, &two, &mut intact(&model), *activations);
            assert_eq!(report.verdict, Verdict::Pass, "{stem} on {mix:?}: {}", report.conclusion);
            assert!(report.missing_stages.is_empty(), "{stem} on {mix:?}: {:?}", report.missing_stages);
        }
    }
}

#[test]
fn experts_that_devices_share_are_judged_and_their_faults_named() {
    let model = model(&fixtures::tiny_q4_k_m());
    let (layers, weights) = (model.graph.num_layers, model.file.clone() as Arc<dyn WeightSource>);
    let shared = |trunk: &str, devices: &[&str]| dealt(&model, placed(&[trunk], &[], layers), devices, 3);
    let report = parity(&model, &shared("cpu", &["cpu", "cpu"]), &mut intact(&model), Activations::Q8);
    assert_eq!(report.verdict, Verdict::Pass, "{}", report.conclusion);
    assert!(report.missing_stages.is_empty(), "{:?}", report.missing_stages);
    let mixed = shared("cpu", &["cpu", "cuda"]);
    let report = parity(&model, &mixed, &mut intact(&model), Activations::F32);
    assert_eq!(report.verdict, Verdict::Pass, "{}", report.conclusion);
    for layer in [0, layers - 1] {
        for fault in [Fault::RopeBase, Fault::SwappedScaleNibble] {
            let mut injected = fault.inject(&model.graph, &weights, layer, 3).unwrap();
            let report = parity(&model, &mixed, &mut injected, Activations::F32);
            let named = report.first.as_ref().map(|first| first.op.clone());
            assert_eq!(named, Some(format!("layer-{layer}/{}", fault.named())), "{fault:?}");
        }
        // Of the experts themselves, which have no launches, the free run tells: one expert's weights are another's.
        let part = expert_parts(&model.graph).into_iter().find(|part| part.layer.index() == layer).unwrap();
        let down =
            part.nodes.iter().filter_map(|id| model.graph.node(*id)).find(|n| n.name == "down_proj").unwrap();
        let decl = model.graph.weight(down.op.weights()[0]);
        let mut bytes = weights.bytes(&decl.name).unwrap().to_vec();
        let each = bytes.len() / part.num_experts;
        bytes.rotate_left(each);
        let mut altered: HashMap<String, Vec<u8>> = model
            .graph
            .weights
            .iter()
            .map(|decl| (decl.name.clone(), weights.bytes(&decl.name).unwrap().to_vec()))
            .collect();
        altered.insert(decl.name.clone(), bytes);
        let mut injected = Injected { graph: model.graph.clone(), weights: Arc::new(altered), hook: None };
        let report = parity(&model, &mixed, &mut injected, Activations::F32);
        let named = report.first.as_ref().map(|first| first.op.clone());
        assert_eq!(named, Some(format!("layer-{layer}/down_proj")));
    }
}

#[test]
fn a_fault_is_named_on_either_side_of_a_cut() {
    let model = model(&fixtures::tiny_q4_k_m());
    let (layers, weights) = (model.graph.num_layers, model.file.clone() as Arc<dyn WeightSource>);
    const ALL: &[Fault] = &[
        Fault::WrongExpert,
        Fault::DroppedExpert,
        Fault::SwappedScaleNibble,
        Fault::ResidualTwice,
        Fault::RopeBase,
    ];
    // The kernels' host harness takes seconds for each.
    for (mix, faults) in [(["cpu", "cpu"], ALL), (["cuda", "cpu"], &[Fault::ResidualTwice])] {
        let two = placed(&mix, &[layers / 2], layers);
        for layer in [layers / 2 - 1, layers / 2] {
            for &fault in faults {
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
