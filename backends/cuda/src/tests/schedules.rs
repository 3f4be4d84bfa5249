//! Every kernel under two orders of its threads and blocks: a barrier or a warp's synchronisation that is missing, shared memory
//! that is used again too early, and a result that hangs on which block comes first give other bits. And the geometry of a large
//! device, whose steps split the cached positions among many blocks.

use super::{Changed, compile, options};
use crate::driver::harness::{self, Schedule};
use crate::state::CudaState;
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::quant::Format;
use moe_run_inspect::cases::{self, OPS};
use moe_run_runtime::TensorData;
use moe_run_runtime::executable::{
    Activations, CompileOptions, Executable, KvType, State, StepInput, StepSequence, StepTokens,
    blocks_in_order,
};
use std::path::Path;
use std::sync::Arc;

const SCHEDULES: [Schedule; 2] = [Schedule::Ascending, Schedule::Descending];
/// Of the harness, and of an H100.
const MULTIPROCESSORS: [u32; 2] = [4, 132];

fn driver(schedule: Schedule, multiprocessors: u32, matrix_units: bool) -> Changed {
    let mut driver = Changed::new();
    driver.inner = harness::open_with(schedule).unwrap();
    driver.info.multiprocessors = multiprocessors;
    driver.info.matrix_units = matrix_units;
    driver
}

fn bits(data: &TensorData) -> Vec<u32> {
    match data {
        TensorData::F32(values) => values.iter().map(|v| v.to_bits()).collect(),
        TensorData::U32(values) => values.clone(),
    }
}

#[test]
fn ops_do_not_depend_on_the_order_of_threads() {
    let mut compared = 0;
    for op in OPS {
        let formats = if cases::takes_formats(op) { &Format::ALL[..] } else { &[Format::F32] };
        for format in formats {
            for seed in 0..if formats.len() > 1 { 4 } else { 18 } {
                let Some(case) = cases::case(op, *format, seed).unwrap() else { continue };
                let activations = [Activations::Q8, Activations::F32, Activations::F16][seed as usize % 3];
                let kv_type = KvType::ALL[seed as usize / 3 % KvType::ALL.len()];
                let run = |schedule| {
                    let driver = driver(schedule, MULTIPROCESSORS[seed as usize % 2], seed % 4 < 2);
                    let options = options(&case, activations, kv_type);
                    // A few shapes have rows that a q8_0 cache refuses.
                    let mut executable =
                        compile(Arc::new(driver), &case.graph, case.weights.as_ref(), &options).ok()?;
                    let found = cases::run_steps(&case, &mut executable).unwrap();
                    Some(found.iter().map(|tensor| bits(&tensor.data)).collect::<Vec<_>>())
                };
                let [one, other] = SCHEDULES.map(run);
                assert!(one == other, "{} with {activations:?}, {kv_type}", case.name);
                compared += usize::from(one.is_some());
            }
        }
    }
    assert!(compared > 250, "{compared}");
}

/// A number in −1 … 1.
fn noise(i: usize) -> f32 {
    let mixed = (i as u32).wrapping_mul(2_654_435_761) ^ 0x9e37_79b9;
    (mixed.wrapping_mul(mixed | 1) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// The logits of a prompt, and of tokens decoded behind a cache of `depth` positions.
fn generated(model: &Model, driver: Changed, options: &CompileOptions, depth: u32) -> Vec<f32> {
    let mut executable = compile(Arc::new(driver), &model.graph, model.file.as_ref(), options).unwrap();
    let mut state = executable.new_state().unwrap();
    let filled = state.as_any_mut().downcast_mut::<CudaState>().unwrap();
    for declared in &model.graph.states {
        let elems = declared.row_elems() * depth as usize;
        let rows: Vec<f32> = (0..elems).map(|i| noise(i + 7 * declared.id.index())).collect();
        filled.write(declared.id, 0, &rows).unwrap();
    }
    let mut all = Vec::new();
    let mut step = |state: &mut dyn State, first: u32, tokens: &[TokenId]| {
        let positions: Vec<u32> = (first..first + tokens.len() as u32).collect();
        let input = StepInput {
            tokens: StepTokens::Host(tokens),
            positions: &positions,
            sequence: &vec![0; tokens.len()],
            kv_slots: &positions,
            sequences: &[StepSequence { blocks: &blocks_in_order(4096), place: 0 }],
            logits_rows: &[tokens.len() as u32 - 1],
        };
        executable.step(state, &input, None).unwrap();
        let mut logits = Vec::new();
        executable.logits(0, &mut logits).unwrap();
        all.extend(logits);
    };
    step(state.as_mut(), depth, &[3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071].map(TokenId));
    for i in 0..3 {
        step(state.as_mut(), depth + 11 + i, &[TokenId(100 + i)]);
    }
    all
}

#[test]
fn steps_do_not_depend_on_the_order_of_threads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/tiny-qwen3moe-q4_k_m.gguf");
    let model = Model::open(Path::new(path)).unwrap();
    for (activations, kv_type, matrix_units) in [
        (Activations::Q8, KvType::F16, true),
        (Activations::F32, KvType::F32, true),
        (Activations::Q8, KvType::Q8_0, false),
    ] {
        // Deep enough for five splits, where the device has blocks for them, the last one short.
        let depth = 600;
        let options = CompileOptions {
            ctx_size: 700,
            activations: Some(activations),
            kv_type,
            ..CompileOptions::default()
        };
        let run = |schedule, multiprocessors| {
            generated(&model, driver(schedule, multiprocessors, matrix_units), &options, depth)
        };
        let small = run(Schedule::Ascending, MULTIPROCESSORS[0]);
        let [large, other] = SCHEDULES.map(|schedule| run(schedule, MULTIPROCESSORS[1]));
        let [one_bits, other_bits] =
            [&large, &other].map(|all| all.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        assert!(one_bits == other_bits, "{activations:?} {kv_type}");
        assert!(large.iter().all(|v| v.is_finite()));
        // Splits change the order of sums alone; in 8 bits a step of the activations may fall otherwise.
        let squares =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let apart =
            squares(&mut small.iter().zip(&large).map(|(a, b)| a - b)) / squares(&mut small.iter().copied());
        let bound = if activations == Activations::F32 { 1e-11 } else { 1e-4 };
        println!("{activations:?} {kv_type}: {apart:e}");
        assert!(apart < bound, "{activations:?} {kv_type}: {apart:e}");
    }
}
