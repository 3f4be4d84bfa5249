//! The CPU's launches. Each runs on all workers at once: it draws chunks, and meets the others at barriers.

pub mod activations;
pub mod attention;
pub mod attention_scores;
pub mod causal_conv;
pub mod concat;
pub mod elementwise;
pub mod embed;
pub mod expert_matmul;
pub mod head_matmul;
pub mod kv_write;
pub mod matmul;
mod matmul_one_token;
pub mod pointwise;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod weights;

use super::kernels::{Kernels, Lanes, Panel, PanelF32, WideLanes};
use super::memory::Arena;
use super::pool::Worker;
use super::state::CpuState;
use activations::{Activations, RowBuffers};
use expert_matmul::Slots;
pub use matmul_one_token::RUN_PANELS;
use moe_run_graph::ir::StepSizes;
use moe_run_runtime::executable::{StepRun, StepSequence};
use std::ops::Range;

/// What a launch sees of the step.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The arithmetic.
    pub kernels: Kernels,
    /// T, R and S.
    pub sizes: StepSizes,
    /// Where each token stands in its sequence.
    pub positions: &'a [u32],
    /// Where each token's keys and values go.
    pub slots: &'a [u32],
    /// The sequences that take part.
    pub sequences: &'a [StepSequence<'a>],
    /// The rows of each, in order.
    pub runs: &'a [StepRun],
    /// Stored values.
    pub arena: &'a Arena,
    /// The KV cache.
    pub state: &'a CpuState,
    /// Activations prepared for a product, when T > 1.
    pub activations: &'a Activations,
    /// Cosines and sines by RoPE table.
    pub rope: &'a [rope::RopeTable],
    /// Partial results of split attention.
    pub partials: &'a attention::Partials,
}

impl Step<'_> {
    /// The position of a token.
    pub fn position(&self, token: usize) -> usize {
        self.positions[token] as usize
    }

    /// The slot of a token's keys and values.
    pub fn slot(&self, token: usize) -> usize {
        self.slots[token] as usize
    }

    /// Stretches of up to `most` tokens of one sequence: how many there are, for sharing them out.
    pub fn stretches(&self, most: usize) -> usize {
        self.runs.iter().map(|run| run.rows.len().div_ceil(most)).sum()
    }

    /// The stretch of a number below [`Step::stretches`]: its sequence and its tokens.
    pub fn stretch(&self, most: usize, mut number: usize) -> (&StepSequence<'_>, Range<usize>) {
        let mut runs = self.runs.iter();
        loop {
            let Some(run) = runs.next() else { unreachable!("stretch {number} behind the last") };
            let stretches = run.rows.len().div_ceil(most);
            if number < stretches {
                let start = run.rows.start + number * most;
                return (&self.sequences[run.sequence], start..(start + most).min(run.rows.end));
            }
            number -= stretches;
        }
    }
}

/// A worker's own memory: nothing is allocated while steps run.
pub struct Scratch {
    /// Unpacked weights.
    pub panel: Box<Panel>,
    /// Unpacked weights or keys, as floats.
    pub wide: Box<PanelF32>,
    /// Sums of a panel's rows for each slot of a group, or of a run of panels for one; two matrices' worth.
    pub sums: [Vec<Lanes>; 2],
    /// Sums of a panel's rows in f64, for each slot of a group.
    pub wide_sums: Vec<WideLanes>,
    /// Weighted sums over experts.
    pub combined: Vec<WideLanes>,
    /// A normed row.
    pub normed: Vec<f32>,
    /// One row on its way into a tile.
    pub row: RowBuffers,
    /// Activations of a one-token step: every worker prepares its own, which saves a barrier.
    pub activations: Activations,
    /// Which slot goes to which expert.
    pub slots: Slots,
    /// Chosen experts and their weights, of a one-token step.
    pub chosen: (Vec<u32>, Vec<f32>),
    /// Attention's tiles.
    pub attention: attention::Tiles,
}

/// One launch.
pub trait Launch: Send + Sync {
    /// Runs this worker's share. Ends without a barrier: the caller puts one between launches.
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, scratch: &mut Scratch);
}
