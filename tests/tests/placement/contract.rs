//! What the contract offers goes through parts: sequences, kept states, blocks, candidates, errors.

use super::{backend, borders, compile, kinds, model, options, placed, text};
use moe_run_backends::executable::{HostTensor, StepInput, StepSequence, StepTokens};
use moe_run_backends::sequences::{Feed, Sequences};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{BackendError, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Rewind, ValueId};
use moe_run_tests::fixtures;

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// The last logits of a text alone.
fn alone(session: &mut Session, tokens: &[TokenId]) -> Vec<u32> {
    session.truncate(0).unwrap();
    session.feed(tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut row = Vec::new();
    session.logits(&mut row).unwrap();
    bits(&row)
}

#[test]
fn sequences_share_steps_and_parts() {
    for (backends, stem) in [
        (["cpu", "cpu"], "micro/mixed-q4_k_m"),
        (["cpu", "cpu"], "arch/jamba/tiny"),
        (["cpu", "cuda"], "micro/mixed-q4_k_m"),
    ] {
        let Some(path) = fixtures::find(&format!("{stem}.gguf")) else { continue };
        let model = model(&path);
        let two = placed(&backends, &borders(&model)[..1], model.graph.num_layers);
        let texts: Vec<_> = (0..2).map(|i| text(&model, i, 3 + i as usize)).collect();
        let mut session = Session::new(compile(&two, &model, &options())).unwrap();
        let wanted: Vec<_> = texts.iter().map(|tokens| alone(&mut session, tokens)).collect();
        let options = CompileOptions { micro_batch: Some(24), ..options() };
        let mut company = Sequences::new(compile(&two, &model, &options), 128, 2).unwrap();
        assert_eq!(company.shares_blocks(), backends == ["cpu", "cpu"], "{backends:?}");
        let ids: Vec<_> = texts.iter().map(|_| company.open().unwrap()).collect();
        let feeds: Vec<_> = ids
            .iter()
            .zip(&texts)
            .map(|(sequence, tokens)| Feed { sequence: *sequence, tokens, wants_logits: true })
            .collect();
        company.step(&feeds, None).unwrap();
        for (i, wanted) in wanted.iter().enumerate() {
            let mut row = Vec::new();
            company.logits(i, &mut row).unwrap();
            assert!(&bits(&row) == wanted, "{backends:?} {stem}: sequence {i}");
        }
    }
}

#[test]
fn states_that_were_kept_come_back_in_every_part() {
    for (name, model) in kinds() {
        let Some(border) = borders(&model).first().copied() else { continue };
        let two = placed(&["cpu", "cpu"], &[border], model.graph.num_layers);
        let options = CompileOptions { ctx_size: 192, micro_batch: Some(64), ..options() };
        let mut session = Session::new(compile(&two, &model, &options)).unwrap();
        // A prompt that parts from the one before behind the border of blocks at 64.
        let (mut first, mut second) = (text(&model, 1, 90), text(&model, 1, 90));
        (first[70], second[70]) = (TokenId(1), TokenId(2));
        first.truncate(88);
        let wanted = alone(&mut session, &second);
        alone(&mut session, &first);
        let kept = session.reuse_prefix(&second).unwrap();
        let goes_back = model.graph.rewind() == Rewind::Free;
        assert_eq!(kept, if goes_back { 70 } else { 64 }, "{name}");
        session.feed(&second[kept..], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        let mut row = Vec::new();
        session.logits(&mut row).unwrap();
        // In a cut of its own a prompt's plain floats may be summed in another order.
        if model.graph.weights.iter().any(|w| w.format.is_quantized()) {
            assert!(bits(&row) == wanted, "{name}");
        }
    }
}

#[test]
fn blocks_of_all_parts_are_saved_and_loaded() {
    let model = model(&fixtures::tiny_q4_k_m());
    let two = placed(&["cpu", "cpu"], &borders(&model)[..1], model.graph.num_layers);
    let options = CompileOptions { ctx_size: 256, micro_batch: Some(128), ..options() };
    let prompt = text(&model, 8, 100);
    let run = |company: &mut Sequences, tokens: &[TokenId]| {
        let id = company.open_with(tokens).unwrap();
        let held = company.tokens(id).len();
        let feed = Feed { sequence: id, tokens: &tokens[held..], wants_logits: true };
        company.step(&[feed], None).unwrap();
        let mut row = Vec::new();
        company.logits(0, &mut row).unwrap();
        company.share(id, tokens.len());
        company.close(id);
        (held, bits(&row))
    };
    let mut first = Sequences::new(compile(&two, &model, &options), 256, 2).unwrap();
    let (held, wanted) = run(&mut first, &prompt);
    assert_eq!(held, 0);
    let mut file = Vec::new();
    first.save_cache("here", &mut file).unwrap();
    let mut second = Sequences::new(compile(&two, &model, &options), 256, 2).unwrap();
    assert_eq!(second.load_cache("here", &mut file.as_slice()).unwrap(), 1);
    assert_eq!(run(&mut second, &prompt), (64, wanted));
}

fn greedy(model: &Model, backends: &[&str], borders: &[usize], count: usize) -> Vec<TokenId> {
    let options = CompileOptions { activations: Some(moe_run_backends::Activations::F32), ..options() };
    let executable = match backends {
        [one] => compile(backend(one).as_ref(), model, &options),
        _ => compile(&placed(backends, borders, model.graph.num_layers), model, &options),
    };
    let mut session = Session::new(executable).unwrap();
    session.feed(&text(model, 6, 6), LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..count {
        let mut best = Vec::new();
        session.candidates(3, &mut best).unwrap();
        let token = session.argmax().unwrap();
        assert_eq!(best[0].0, token);
        tokens.push(token);
        session.decode(token, None).unwrap();
    }
    tokens
}

#[test]
fn greedy_tokens_are_the_same_on_any_devices() {
    let model = model(&fixtures::tiny_q4_k_m());
    let wanted = greedy(&model, &["cpu"], &[], 12);
    assert_eq!(greedy(&model, &["cpu", "cpu"], &[1], 12), wanted);
    assert_eq!(greedy(&model, &["cpu", "cuda", "cpu"], &[1, 2], 6), wanted[..6]);
    if super::backend("wgpu").devices().is_ok_and(|devices| !devices.is_empty()) {
        assert_eq!(greedy(&model, &["wgpu", "cpu"], &[1], 3), wanted[..3]);
    } else {
        println!("SKIPPED: no device of backend wgpu");
    }
}

#[test]
fn a_step_takes_the_token_that_the_last_part_chose() {
    let model = model(&fixtures::tiny_q4_k_m());
    let two = placed(&["cpu", "cpu"], &borders(&model)[..1], model.graph.num_layers);
    let mut executable = compile(&two, &model, &options());
    let mut state = executable.new_state().unwrap();
    let sequences = [StepSequence { blocks: &[0], place: 0 }];
    let input = |tokens| StepInput {
        tokens,
        positions: &[0],
        sequence: &[0],
        kv_slots: &[0],
        sequences: &sequences,
        logits_rows: &[0],
    };
    executable.step(state.as_mut(), &input(StepTokens::Host(&[TokenId(5)])), None).unwrap();
    assert!(executable.taken().is_err());
    let chosen = executable.argmax(0).unwrap();
    let next = StepInput { positions: &[1], kv_slots: &[1], ..input(StepTokens::Argmax { row: 0 }) };
    executable.step(state.as_mut(), &next, None).unwrap();
    assert_eq!(executable.taken().unwrap(), chosen);
    assert_eq!(executable.output(0).unwrap().shape, [1, model.config.vocab_size]);
    assert!(executable.output(1).is_err() && executable.logits(1, &mut Vec::new()).is_err());
}

#[test]
fn what_is_not_sound_is_refused_and_leaves_the_rest_usable() {
    let model = model(&fixtures::tiny_q4_k_m());
    let two = placed(&["cpu", "cpu"], &borders(&model)[..1], model.graph.num_layers);
    let mut executable = compile(&two, &model, &options());
    let mut others = compile(backend("cpu").as_ref(), &model, &options()).new_state().unwrap();
    let sequences = [StepSequence { blocks: &[0], place: 0 }];
    let input = StepInput {
        tokens: StepTokens::Host(&[TokenId(5)]),
        positions: &[0],
        sequence: &[0],
        kv_slots: &[0],
        sequences: &sequences,
        logits_rows: &[0],
    };
    let error = executable.step(others.as_mut(), &input, None).unwrap_err();
    assert!(matches!(error, BackendError::Input(_)), "{error}");
    let mut state = executable.new_state().unwrap();
    let bad = StepInput { tokens: StepTokens::Host(&[TokenId(u32::MAX)]), ..input };
    assert!(executable.step(state.as_mut(), &bad, None).is_err());
    executable.step(state.as_mut(), &input, None).unwrap();
    // A graph without boundary inputs takes none.
    let tensor = HostTensor::f32(vec![1], vec![0.0]);
    let mut one = compile(backend("cpu").as_ref(), &model, &options());
    assert!(matches!(one.give(ValueId(9), tensor), Err(BackendError::Value { .. })));
}
