//! What is particular to the CUDA backend, on the host harness: the decode step's grouped launches, taps inside them,
//! the recorded step, schedules.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, BackendError, CompileOptions, KvType, Observer, TapValue};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_tests::stages::StageFile;
use moe_run_tests::{CudaHarness, fixtures, relative_l2};
use std::collections::BTreeMap;

/// Rows of taps along T, one step after another.
#[derive(Default)]
struct Rows(BTreeMap<String, Vec<Vec<f32>>>);

impl Observer for Rows {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.0.entry(tap.stage.path(tap.layer)).or_default().push(tap.tensor.floats().into_owned());
        Ok(())
    }
}

fn options(taps: TapSelection, ctx_size: usize) -> CompileOptions {
    CompileOptions {
        activations: Some(Activations::F32),
        kv_type: KvType::F32,
        ctx_size,
        micro_batch: Some(1),
        taps,
        ..CompileOptions::default()
    }
}

/// Every stage of the decode step, token after token through the grouped launches, against the stage files.
#[test]
fn decode_steps_match_the_stage_files() {
    for (stem, model, stages) in fixtures::micro_models().into_iter().chain(fixtures::tiny_models()) {
        let model = Model::open(&model).unwrap();
        let wanted = StageFile::read(&stages);
        let options = options(TapSelection::All, wanted.tokens.len());
        let executable = CudaHarness.compile(&model.graph, model.file.clone(), &options).unwrap();
        let mut session = Session::new(executable).unwrap();
        let mut rows = Rows::default();
        for token in &wanted.tokens {
            session.feed(&[*token], LogitsRows::Last, Some(&mut rows), |_, _| Ok(())).unwrap();
        }
        let mut worst = 0.0f64;
        for (path, (shape, values)) in &wanted.values {
            if path.ends_with("attn_scores") || path.ends_with("attn_softmax") {
                continue; // [H, T, S] grows with the step; compared in prefill
            }
            let found = rows.0[path].concat();
            assert_eq!(found.len(), shape.iter().product::<usize>(), "{stem}: {path}");
            if path.ends_with("moe_topk_ids") {
                assert_eq!(&found, values, "{stem}: {path}");
            }
            let distance = relative_l2(&found, values);
            assert!(distance <= 1e-3, "{stem}: {path}: relative L2 {distance:.3e}");
            worst = worst.max(distance);
        }
        println!("{stem:20} worst stage {worst:.2e}");
    }
}

fn decode_logits(
    model: &Model,
    options: &CompileOptions,
    tokens: &[TokenId],
    observed: bool,
) -> Vec<Vec<u32>> {
    let executable = CudaHarness.compile(&model.graph, model.file.clone(), options).unwrap();
    let mut session = Session::new(executable).unwrap();
    let mut rows = Rows::default();
    let mut all = Vec::new();
    for token in tokens {
        let observer = observed.then_some(&mut rows as &mut dyn Observer);
        session.feed(&[*token], LogitsRows::Last, observer, |_, _| Ok(())).unwrap();
        let mut logits = Vec::new();
        session.logits(&mut logits).unwrap();
        all.push(logits.iter().map(|l| l.to_bits()).collect());
    }
    all
}

/// With all taps and an observer, with taps and none (the recorded step), and without taps: the same bits.
#[test]
fn taps_change_no_bit_of_the_decode_step() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let tokens: Vec<TokenId> = [3070, 303, 198, 354, 294, 220, 17].map(TokenId).to_vec();
    for activations in [Activations::Q8, Activations::F32] {
        let with = |taps| CompileOptions { activations: Some(activations), ..options(taps, 16) };
        let plain = decode_logits(&model, &with(TapSelection::None), &tokens, false);
        assert!(plain.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite()));
        assert_eq!(plain, decode_logits(&model, &with(TapSelection::All), &tokens, true));
        assert_eq!(plain, decode_logits(&model, &with(TapSelection::All), &tokens, false));
    }
}

/// At most seven launches a layer, counted from the plan.
#[test]
fn six_launches_a_layer() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let executable =
        CudaHarness.compile(&model.graph, model.file.clone(), &options(TapSelection::None, 16)).unwrap();
    let plan = executable.plan(1);
    for layer in 0..model.config.num_hidden_layers {
        let names: Vec<&str> = plan
            .launches
            .iter()
            .filter(|l| l.layer.is_some_and(|l| l.index() == layer))
            .map(|l| l.pattern)
            .collect();
        assert_eq!(
            names,
            ["norm_qkv", "attention_step", "matmul_residual", "norm_router", "route_gate_up", "down_combine"]
        );
    }
    // embedding and final norm with lm_head
    assert_eq!(plan.launches.len(), 6 * model.config.num_hidden_layers + 2);
}
