//! Memory that launches of a step share, each using it up before the next begins.

use crate::device;
use crate::driver::{DeviceBuffer, Driver, Param};
use moe_run_graph::ir::{Graph, Op, StepSizes};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::MAX_CANDIDATES;
use std::sync::Arc;

/// The most blocks of the first step of a choice.
pub(crate) const ARGMAX_PARTS: usize = 64;
/// The most logits that a block of the candidates' first step keeps in shared memory.
pub(crate) const TOP_PART_ELEMS: usize = 8192;
/// Pairs of one expert that a grouped launch takes together: EXPERT_TILE in kernels/expert_matmul.cu.
pub(crate) const EXPERT_TILE: usize = 8;

/// The sizes, found from the graph.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScratchSizes {
    /// The largest input of a matmul.
    pub act_elems: usize,
    /// (token, expert) pairs.
    pub pairs: usize,
    pub experts: usize,
    /// Partial sums of split attention: splits · rows · dv.
    pub partial_elems: usize,
    /// splits · rows.
    pub partial_rows: usize,
    /// Blocks that wait for their splits.
    pub counters: usize,
}

impl ScratchSizes {
    pub fn of(graph: &Graph, max: StepSizes, multiprocessors: u32) -> ScratchSizes {
        let mut s = ScratchSizes::default();
        for node in &graph.nodes {
            match &node.op {
                Op::MatMul { .. } | Op::HeadMatMul { .. } => {
                    s.act_elems = s.act_elems.max(graph.value(node.inputs[0]).shape.elems(max))
                }
                Op::ExpertMatMul { weight, .. } => {
                    s.act_elems = s.act_elems.max(graph.value(node.inputs[0]).shape.elems(max));
                    s.pairs = s.pairs.max(graph.value(node.inputs[1]).shape.elems(max));
                    s.experts = s.experts.max(graph.weight(weight.tensor).shape[0]);
                }
                Op::Attention(a) => {
                    let (blocks, splits) = super::split_geometry(a, 1, multiprocessors);
                    let rows = splits * a.num_attention_heads;
                    s.partial_rows = s.partial_rows.max(rows);
                    s.partial_elems = s.partial_elems.max(rows * a.value_head_dim);
                    s.counters = s.counters.max(blocks * max.tokens);
                }
                Op::Embed { .. }
                | Op::RmsNorm { .. }
                | Op::LayerNorm { .. }
                | Op::PositionScale(_)
                | Op::MulHeads
                | Op::Rope { .. }
                | Op::KvWrite { .. }
                | Op::AttentionScores(_)
                | Op::AttentionSoftmax(_)
                | Op::Router(_)
                | Op::GivenExperts(_)
                | Op::IndexScores(_)
                | Op::IndexSelect { .. }
                | Op::GatedAct { .. }
                | Op::ExpertCombine
                | Op::CausalConv(_)
                | Op::DeltaGates { .. }
                | Op::DeltaRule(_)
                | Op::SsmScan(_)
                | Op::HyperGates(_)
                | Op::HyperConnect { .. }
                | Op::Compress(_)
                | Op::CompressedAttention(_)
                | Op::Add
                | Op::Mul
                | Op::Pointwise { .. }
                | Op::Concat { .. }
                | Op::Slice { .. }
                | Op::GetRows
                | Op::Tap { .. } => {}
            }
        }
        s
    }

    /// The most tiles that the pairs can fall into.
    pub fn tiles(&self) -> usize {
        self.pairs / EXPERT_TILE + self.experts.min(self.pairs)
    }

    pub fn bytes(&self) -> u64 {
        let words =
            self.act_elems + self.pairs + self.experts + 1 + 3 * self.tiles() + 1 + self.partial_elems;
        4 * (words + 2 * self.partial_rows + self.counters + 2 * (ARGMAX_PARTS + 1) * MAX_CANDIDATES) as u64
    }
}

/// The buffers.
pub(crate) struct Scratch {
    /// 8-bit or rounded activations.
    pub act: DeviceBuffer,
    /// Pairs, expert after expert, and where each expert's begin.
    pub order: DeviceBuffer,
    pub first: DeviceBuffer,
    pub tiles: DeviceBuffer,
    pub tile_count: DeviceBuffer,
    pub partial: DeviceBuffer,
    pub partial_state: DeviceBuffer,
    /// Zero between launches.
    pub arrived: DeviceBuffer,
    /// What was chosen of each part of the logits, and of all: pairs of rank and id.
    pub top_parts: DeviceBuffer,
    pub top: DeviceBuffer,
    pub multiprocessors: u32,
}

impl Scratch {
    pub fn new(driver: &Arc<dyn Driver>, sizes: ScratchSizes) -> Result<Scratch, BackendError> {
        let failed = |e| device::error(&driver.info().name, e);
        let words = |n: usize| DeviceBuffer::new(driver, 4 * n as u64).map_err(failed);
        let arrived = words(sizes.counters)?;
        driver.clear(arrived.address(), arrived.bytes().max(1)).map_err(failed)?;
        Ok(Scratch {
            act: words(sizes.act_elems)?,
            order: words(sizes.pairs)?,
            first: words(sizes.experts + 1)?,
            tiles: words(3 * sizes.tiles())?,
            tile_count: words(1)?,
            partial: words(sizes.partial_elems)?,
            partial_state: words(2 * sizes.partial_rows)?,
            arrived,
            top_parts: words(2 * ARGMAX_PARTS * MAX_CANDIDATES)?,
            top: words(2 * MAX_CANDIDATES)?,
            multiprocessors: driver.info().multiprocessors,
        })
    }

    /// `n` elements of activations as f32.
    pub fn rounded(&self, elems: usize) -> Param {
        self.act.slice(0, 4 * elems as u64)
    }

    /// `n` elements of activations in 8 bits: the steps and the scales.
    pub fn quantized(&self, elems: usize) -> (Param, Param) {
        (self.act.slice(0, elems as u64), self.act.slice(elems as u64, elems as u64 / 8))
    }
}
