//! Every cut by layers gives the bits of one device.

use super::{backend, borders, compile, kinds, logits, model, options, placed, text};
use moe_run_backends::placed::{Part, Placed};
use moe_run_backends::{Activations, Backend, BackendError, CompileOptions};
use moe_run_graph::passes::cuts;
use moe_run_tests::collect::all_taps;
use moe_run_tests::fixtures;

#[test]
fn every_cut_on_two_cpus_has_the_bits_of_one() {
    let mut cut = 0;
    for (name, model) in kinds() {
        let (layers, tokens) = (model.graph.num_layers, text(&model, 1, 14));
        let wanted = logits(compile(backend("cpu").as_ref(), &model, &options()), &tokens, 3);
        for border in borders(&model) {
            let two = placed(&["cpu", "cpu"], &[border], layers);
            let found = logits(compile(&two, &model, &options()), &tokens, 3);
            assert!(found == wanted, "{name}: a cut in front of layer {border} changes bits");
            cut += 1;
        }
    }
    assert!(cut >= 12, "{cut} cuts");
}

#[test]
fn every_architecture_is_cut_in_the_middle() {
    let mut seen = 0;
    for (name, path, _) in fixtures::architecture_models() {
        let model = model(&path);
        let Some(border) = borders(&model).into_iter().min_by_key(|b| b.abs_diff(model.graph.num_layers / 2))
        else {
            continue;
        };
        let tokens = text(&model, 2, 9);
        let wanted = logits(compile(backend("cpu").as_ref(), &model, &options()), &tokens, 2);
        let two = placed(&["cpu", "cpu"], &[border], model.graph.num_layers);
        assert!(logits(compile(&two, &model, &options()), &tokens, 2) == wanted, "{name}, layer {border}");
        seen += 1;
    }
    println!("{seen} models");
    assert!(seen >= 20, "{seen} models");
}

#[test]
fn a_part_for_each_layer_and_parts_of_the_reference_have_the_same_bits() {
    let path = fixtures::find("micro/mixed-q4_k_m.gguf").unwrap();
    let model = model(&path);
    let layers = model.graph.num_layers;
    let options = CompileOptions { activations: Some(Activations::Q8), ..options() };
    let tokens = text(&model, 3, 12);
    let wanted = logits(compile(backend("cpu").as_ref(), &model, &options), &tokens, 3);
    let all: Vec<usize> = (1..layers).collect();
    let each = placed(&vec!["cpu"; layers], &all, layers);
    assert_eq!(logits(compile(&each, &model, &options), &tokens, 3), wanted);
    // Defined to the bit on both, in a block that both have.
    let mixed = placed(&["cpu", "reference"], &[1], layers);
    assert_eq!(logits(compile(&mixed, &model, &options), &tokens, 3), wanted);
    assert!(mixed.has_reference_bits() && mixed.name() == "placed");
}

#[test]
fn two_harness_devices_have_the_bits_of_one() {
    for stem in ["arch/deepseek2/v3", "arch/granitehybrid/small-f16"] {
        let Some(path) = fixtures::find(&format!("{stem}.gguf")) else { continue };
        let model = model(&path);
        let tokens = text(&model, 4, 7);
        let wanted = logits(compile(backend("cuda").as_ref(), &model, &options()), &tokens, 2);
        for border in borders(&model).into_iter().take(1) {
            let two = placed(&["cuda", "cuda"], &[border], model.graph.num_layers);
            assert!(
                logits(compile(&two, &model, &options()), &tokens, 2) == wanted,
                "{stem}, layer {border}"
            );
        }
    }
}

#[test]
fn taps_and_states_of_all_parts_are_those_of_one_device() {
    for (name, model) in kinds() {
        let (layers, tokens) = (model.graph.num_layers, text(&model, 5, 7));
        let Some(border) = borders(&model).last().copied() else { continue };
        let wanted = all_taps(backend("cpu").as_ref(), &model, &options(), &tokens).unwrap();
        let two = placed(&["cpu", "cpu"], &[border], layers);
        let found = all_taps(&two, &model, &options(), &tokens).unwrap();
        assert_eq!(
            found.values.keys().collect::<Vec<_>>(),
            wanted.values.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (stage, value) in &wanted.values {
            let same = found.values[stage].data.to_f32().iter().map(|x| x.to_bits()).eq(value
                .data
                .to_f32()
                .iter()
                .map(|x| x.to_bits()));
            assert!(same, "{name}: {stage}");
        }
        assert_eq!(found.states.len(), wanted.states.len(), "{name}");
        for (stage, value) in &wanted.states {
            assert_eq!(found.states[stage].data.to_f32(), value.data.to_f32(), "{name}: {stage}");
        }
    }
}

#[test]
fn a_cut_between_layers_that_share_a_cache_is_refused_by_name() {
    let Some(path) = fixtures::find("arch/gemma4/e2b-dense.gguf") else { return };
    let model = model(&path);
    let cuts = cuts(&model.graph);
    let Some(border) = (1..cuts.len()).find(|layer| !cuts[*layer]) else {
        panic!("every cut is free: {cuts:?}")
    };
    let two = placed(&["cpu", "cpu"], &[border], model.graph.num_layers);
    let error = two.compile(&model.graph, model.file.clone(), &options()).err().unwrap().to_string();
    assert!(error.contains("both must be on one device") && error.contains("layer-"), "{error}");
}

#[test]
fn parts_that_do_not_make_a_model_are_refused() {
    let part = |layers| Part { backend: backend("cpu"), device: None, label: "cpu".to_owned(), layers };
    for parts in [vec![], vec![part(0..0)], vec![part(0..2), part(3..4)], vec![part(1..2)]] {
        assert!(matches!(Placed::new(parts), Err(BackendError::Input(_))));
    }
    let model = model(&fixtures::tiny_q4_k_m());
    let wrong = Placed::new(vec![part(0..model.graph.num_layers + 1)]).unwrap();
    let error = wrong.compile(&model.graph, model.file.clone(), &options()).err().unwrap().to_string();
    assert!(error.contains("for a model of"), "{error}");
}
