//! What a step chooses from its logits: recorded with it, the host's own choice to the bit, and nothing else read back.

use super::{Changed, Counts, compile};
use crate::compile::CudaExecutable;
use crate::driver::harness::{self, Schedule};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, Op, WeightHome, WeightSlice};
use moe_run_graph::quant::Format;
use moe_run_runtime::choice::{MAX_CANDIDATES, argmax, best_candidates};
use moe_run_runtime::executable::{
    CompileOptions, Executable, State, StepInput, StepSequence, StepTokens, blocks_in_order,
};
use moe_run_runtime::session::{LogitsRows, Session};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Not a multiple of any block's share.
const WIDTH: usize = 5000;

/// Rows of logits: ties within a part and between parts, the best in the last place, infinities of both signs, zeroes of both,
/// few that are finite, and NaNs.
fn rows() -> Vec<Vec<f32>> {
    let mixed =
        |s: u32| (0..WIDTH as u32).map(move |i| ((i * 7919 + s * 104_729) % 1009) as f32 / 10.0 - 60.0);
    let mut rows: Vec<Vec<f32>> = (0..10).map(|s| mixed(s).collect()).collect();
    rows[1][WIDTH - 1] = 1e9;
    rows[2].fill(f32::NEG_INFINITY);
    rows[3].fill(-0.5);
    rows[3][1500] = 0.0;
    rows[4][1023] = f32::INFINITY;
    rows[4][1024] = f32::INFINITY;
    rows[5].fill(f32::NEG_INFINITY);
    rows[5][4000] = -3.0;
    rows[5][7] = -3.0;
    // The best all in one part, in one thread's share, and in the first places.
    rows[7] = (0..WIDTH).map(|i| i as f32).collect();
    rows[8] = (0..WIDTH).map(|i| if i % 256 == 3 { 100.0 + i as f32 } else { -1.0 - i as f32 }).collect();
    rows[9] = (0..WIDTH).map(|i| 1.0 - (i / 2) as f32).collect();
    rows[6][4321] = f32::NAN;
    rows[6][4322] = f32::NAN;
    rows
}

/// A graph whose logits behind token t are row t.
fn table(driver: Changed) -> (CudaExecutable, Box<dyn State>) {
    let rows = rows();
    let mut graph = Graph::new();
    let tensor = graph.add_weight("weight", vec![rows.len(), WIDTH], Format::F32);
    let table = WeightSlice { tensor, rows: 0..rows.len(), experts: None, home: WeightHome::Device };
    let inputs = (graph.inputs.tokens, graph.inputs.logits_rows);
    let found = graph.push(None, "embed_tokens", Op::Embed { table, scale: None }, &[inputs.0]).unwrap();
    graph.outputs = graph.push(None, "logits_rows", Op::GetRows, &[found[0], inputs.1]).unwrap();
    let bytes = bytemuck::cast_slice(&rows.concat()).to_vec();
    let weights = HashMap::from([("weight".to_owned(), bytes)]);
    let executable = compile(Arc::new(driver), &graph, &weights, &CompileOptions::default()).unwrap();
    let state = executable.new_state().unwrap();
    (executable, state)
}

fn step(executable: &mut CudaExecutable, state: &mut dyn State, tokens: StepTokens<'_>) {
    let count = match tokens {
        StepTokens::Host(tokens) => tokens.len() as u32,
        StepTokens::Argmax { .. } => 1,
    };
    let positions: Vec<u32> = (0..count).collect();
    let input = StepInput {
        tokens,
        positions: &positions,
        sequence: &vec![0; positions.len()],
        kv_slots: &positions,
        sequences: &[StepSequence { blocks: &blocks_in_order(4096), place: 0 }],
        logits_rows: &[count - 1],
    };
    executable.step(state, &input, None).unwrap();
}

fn bits(candidates: &[(TokenId, f32)]) -> Vec<(u32, u32)> {
    candidates.iter().map(|(id, logit)| (id.0, logit.to_bits())).collect()
}

#[test]
fn a_step_chooses_what_the_host_would() {
    for schedule in [Schedule::Ascending, Schedule::Descending] {
        let mut driver = Changed::new();
        driver.inner = harness::open_with(schedule).unwrap();
        choices_are_the_host_s(driver);
    }
}

fn choices_are_the_host_s(driver: Changed) {
    let counts = Arc::clone(&driver.counts);
    let (mut executable, mut state) = table(driver);
    let rows = rows();
    // As many as expected, fewer, and more; each after steps of one token and of several, the first of each not recorded.
    for (expected, asked) in
        [(1, 1), (20, 20), (20, 3), (3, 20), (1, 5), (20, 1), (MAX_CANDIDATES, MAX_CANDIDATES)]
    {
        executable.expect_candidates(expected);
        for (t, logits) in rows.iter().enumerate().chain([(0, &rows[0])]) {
            let token = TokenId(t as u32);
            let before = counts.all();
            match t {
                3 => step(&mut executable, state.as_mut(), StepTokens::Host(&[TokenId(1), token])),
                _ => step(&mut executable, state.as_mut(), StepTokens::Host(&[token])),
            }
            let stepped = counts.all();
            let (mut found, mut wanted) = (Vec::new(), Vec::new());
            let got = executable.candidates(0, asked, &mut found).map_err(|e| e.to_string());
            let want = best_candidates(logits, asked, &mut wanted).map_err(|e| e.to_string());
            assert_eq!(got, want, "row {t}: {asked} of {expected} expected");
            if got.is_ok() {
                assert_eq!(bits(&found), bits(&wanted), "row {t}: {asked} of {expected} expected");
            }
            assert_eq!(
                executable.argmax(0).map_err(|e| e.to_string()),
                argmax(logits).map_err(|e| e.to_string())
            );
            let asked_for = counts.all();
            // What the step chose is there; more is two launches.
            let launches = if asked > expected { 2 } else { 0 };
            assert_eq!(asked_for[0] - stepped[0], launches, "row {t}: {asked} of {expected} expected");
            assert_eq!(asked_for[3], stepped[3], "nothing is copied while the host waits");
            assert_eq!(stepped[5] - before[5], 8 * expected);
        }
    }
    // A recording for each number that was expected anew; the first steps of all are not recorded.
    assert_eq!(counts.all()[1], 6);
    assert!(executable.candidates(1, 1, &mut Vec::new()).is_err(), "a row that was not asked for");
}

/// The token that the next step takes, behind steps that chose it, chose others, or several rows.
#[test]
fn the_next_step_takes_the_best_token() {
    let (mut executable, mut state) = table(Changed::new());
    // Best ids that are rows themselves.
    let best = argmax(&rows()[0]).unwrap();
    assert!(best.0 as usize >= rows().len(), "the table has no such row, so that its logits are NaN");
    for expected in [1, 1, 1, 20, 20, 20] {
        executable.expect_candidates(expected);
        step(&mut executable, state.as_mut(), StepTokens::Host(&[TokenId(0)]));
        assert!(executable.taken().is_err());
        step(&mut executable, state.as_mut(), StepTokens::Argmax { row: 0 });
        assert_eq!(executable.taken().unwrap(), best);
        // Its own choice does not disturb what it took.
        assert!(executable.argmax(0).unwrap_err().to_string().contains("logit 0 is NaN"));
        assert_eq!(executable.taken().unwrap(), best);
    }
}

/// Ten tokens of the tiny model, greedy and sampled: each one replay and one small copy; nothing is launched by itself, nothing
/// recorded anew, and the logits stay on the device.
#[test]
fn a_token_is_one_replay_and_its_candidates() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/tiny-qwen3moe-q4_k_m.gguf");
    let model = Model::open(Path::new(path)).unwrap();
    let options = CompileOptions { ctx_size: 64, ..CompileOptions::default() };
    let driver = Changed::new();
    let counts: Arc<Counts> = Arc::clone(&driver.counts);
    let executable = compile(Arc::new(driver), &model.graph, model.file.as_ref(), &options).unwrap();
    let mut session = Session::new(Box::new(executable)).unwrap();
    session.feed(&[TokenId(5), TokenId(6)], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    for sampled in [None, Some(20), Some(1)] {
        session.executable().expect_candidates(sampled.unwrap_or(1));
        // The first step of each kind is not recorded, the second is.
        for _ in 0..2 {
            session.decode(TokenId(7), None).unwrap();
        }
        let before = counts.all();
        let mut best = Vec::new();
        for _ in 0..10 {
            let token = match sampled {
                None => {
                    assert!(session.queue_next().unwrap());
                    session.argmax().unwrap()
                }
                Some(count) => {
                    session.candidates(count, &mut best).unwrap();
                    assert_eq!(best.len(), count);
                    best[count / 2].0
                }
            };
            session.decode(token, None).unwrap();
        }
        let after = counts.all();
        let added: Vec<usize> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        assert_eq!(added, [0, 0, 10, 0, 10, 10 * 8 * sampled.unwrap_or(1)], "{sampled:?}");
    }
}
