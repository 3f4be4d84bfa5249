//! The CPU's launches. Each runs on all workers at once: it draws chunks, and meets the others at barriers. What a chunk may
//! write, and how without `unsafe`, is in [`crate::share`]; the files that need more than that say so at each place.

#[forbid(unsafe_code)]
pub mod activations;
pub mod attention;
pub mod attention_scores;
#[forbid(unsafe_code)]
pub mod causal_conv;
#[forbid(unsafe_code)]
pub mod compress;
#[forbid(unsafe_code)]
pub mod compressed_attention;
#[forbid(unsafe_code)]
pub mod concat;
#[forbid(unsafe_code)]
pub mod delta_rule;
#[forbid(unsafe_code)]
pub mod elementwise;
#[forbid(unsafe_code)]
pub mod embed;
#[forbid(unsafe_code)]
pub mod expert_matmul;
#[forbid(unsafe_code)]
pub mod given_experts;
#[forbid(unsafe_code)]
pub mod head_matmul;
#[forbid(unsafe_code)]
pub mod hyper;
pub mod index_scores;
#[forbid(unsafe_code)]
pub mod index_select;
#[forbid(unsafe_code)]
pub mod kv_write;
#[forbid(unsafe_code)]
pub mod layer_norm;
pub mod matmul;
#[forbid(unsafe_code)]
mod matmul_few_tokens;
#[forbid(unsafe_code)]
pub mod mul_heads;
#[forbid(unsafe_code)]
pub mod pointwise;
#[forbid(unsafe_code)]
pub mod position_scale;
#[forbid(unsafe_code)]
pub mod rms_norm;
#[forbid(unsafe_code)]
pub mod rope;
#[forbid(unsafe_code)]
pub mod router;
#[forbid(unsafe_code)]
pub mod ssm_scan;
#[forbid(unsafe_code)]
pub mod weights;

use super::kernels::{Kernels, Lanes, Panel, PanelF32, WideLanes};
use super::memory::Arena;
use super::pool::Worker;
use super::state::CpuState;
use super::tiles::ActivationTiles;
use activations::RowBuffers;
use expert_matmul::Slots;
pub use matmul_few_tokens::RUN_PANELS;
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
    /// Which of the sequences each token is of.
    pub sequence: &'a [u32],
    /// The sequences that take part.
    pub sequences: &'a [StepSequence<'a>],
    /// The rows of each, in order.
    pub runs: &'a [StepRun],
    /// Stored values.
    pub arena: &'a Arena,
    /// The KV cache.
    pub state: &'a CpuState,
    /// Activations prepared for a product, when T > 1.
    pub activations: &'a ActivationTiles,
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

    /// The rows of each sequence, up to `most` at a time and in order, with the sequence's place.
    pub fn tiles(&self, most: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.runs.iter().flat_map(move |run| {
            let (place, end) = (self.sequences[run.sequence].place as usize, run.rows.end);
            run.rows.clone().step_by(most).map(move |first| (place, first..(first + most).min(end)))
        })
    }

    /// The slot of a token's row in a state that has a row for every token, or of a window of them.
    pub fn slot(&self, state: usize, token: usize) -> usize {
        let sequence = &self.sequences[self.sequence[token] as usize];
        self.state.slot(state, sequence, self.position(token))
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
    pub activations: ActivationTiles,
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
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch);
}

#[cfg(test)]
mod tests {
    /// The other files forbid it; these three write what no chunk's number can say.
    #[test]
    fn unsafe_blocks_of_launches_are_few() {
        let files =
            [include_str!("attention.rs"), include_str!("attention_scores.rs"), include_str!("matmul.rs")];
        let counts = files.map(|file| file.matches("unsafe {").count() + file.matches("unsafe fn").count());
        assert_eq!(counts, [5, 1, 3], "unsafe in launches: see `share`");
    }
}
