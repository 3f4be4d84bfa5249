//! The decode step's grouped launches, one kernel each: which of graph/src/groups fit, and their kernels' parameters.
//!
//! A layer with experts is `norm_qkv`, `attention_step`, `matmul_residual`, `norm_router`, `route_gate_up`, `down_combine`; with a
//! shared expert `router_gate_up` stands in the place of `norm_router`; a dense layer has `gate_up` and `matmul_residual` in the
//! place of the last three. Latent attention is `latent_heads`, attention and the product of the heads' v matrices; the gated
//! delta rule is `delta_step` behind its convolution.
//! Where attention has a gate, `gated_matmul` stands in the place of `matmul_residual`; a post-norm and its addition are a part of
//! `norm_router`, or `norm_residual`. The final norm goes with lm_head.
//!
//! An inner value that a tap wants is written from the same registers that feed the rest. Prefill has no groups.

mod attention_step;
mod delta_step;
mod down_combine;
mod gate_up;
mod gated_matmul;
mod latent_heads;
mod matmul_residual;
mod norm_matmul;
mod norm_residual;
mod norms_residual;
mod route_gate_up;
mod router_gate_up;

pub(super) use down_combine::down_lanes;

use super::driver::Param;
use super::ops::{self, Emit, int, matmul};
use moe_run_graph::groups::parts::{ExpertProduct, RowNorm, RowNormKind, Sliced};
use moe_run_graph::groups::{
    AttentionStep, DeltaStep, DownCombine, FinalNormLmHead, GateUp, GatedMatMul, Group, LatentHeads,
    LaunchPattern, MatMulResidual, NormQkv, NormResidual, NormRouter, NormsResidual, RouteGateUp,
    RouterGateUp, group_of,
};
use moe_run_graph::ir::{Dim, Graph, Node, ValueId, WeightHome, WeightSlice};
use moe_run_graph::quant::{ActProfile, Format};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// The widest row that is kept in shared memory as f32 and in 8 bits: 5.375 bytes an element of 48 KiB.
const MAX_NORM_ELEMS: usize = 8192;
/// The most elements that are kept in 8 bits alone.
const MAX_STAGED_ELEMS: usize = 32768;

/// A group that there is a kernel for.
trait Runs: Group {
    /// The kernel, for dumps.
    const KERNEL: &'static str = Self::NAME;

    /// Whether the kernel takes it, with a cache of this type.
    fn fits(&self, graph: &Graph, kv_type: KvType) -> bool;

    /// Appends the launch of a group that fits.
    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError>;
}

/// Calls a function for every group, best first.
macro_rules! each_group {
    ($call:ident) => {
        [
            $call!(AttentionStep),
            $call!(DeltaStep),
            $call!(LatentHeads),
            $call!(RouteGateUp),
            $call!(FinalNormLmHead),
            $call!(GatedMatMul),
            $call!(RouterGateUp),
            $call!(NormQkv),
            $call!(NormRouter),
            $call!(GateUp),
            $call!(DownCombine),
            $call!(MatMulResidual),
            $call!(NormsResidual),
            $call!(NormResidual),
        ]
    };
}

/// The groups for steps of up to `tokens` tokens, best first. They know f32 and 8-bit activations; f16 runs op by op.
pub(super) fn patterns(tokens: usize, profile: ActProfile, kv_type: KvType) -> Vec<LaunchPattern> {
    macro_rules! pattern {
        ($group:ty) => {
            LaunchPattern::new::<$group>(move |graph, group| group.fits(graph, kv_type))
        };
    }
    if tokens == 1 && profile != ActProfile::F16 { each_group!(pattern).to_vec() } else { Vec::new() }
}

/// The kernel of a group, for dumps.
pub(super) fn kernel_name(pattern: &str) -> Option<&'static str> {
    macro_rules! names {
        ($group:ty) => {
            (<$group>::NAME, <$group as Runs>::KERNEL)
        };
    }
    each_group!(names).into_iter().find(|(name, _)| *name == pattern).map(|(_, kernel)| kernel)
}

/// Appends the launch of a group; its nodes are those that the pattern matched.
pub(super) fn emit(emit: &mut Emit<'_>, pattern: &str, nodes: &[&Node]) -> Result<(), BackendError> {
    type Run = fn(&mut Emit<'_>, &[&Node]) -> Result<(), BackendError>;
    macro_rules! runs {
        ($group:ty) => {
            (<$group>::NAME, run::<$group> as Run)
        };
    }
    let run = each_group!(runs).into_iter().find(|(name, _)| *name == pattern);
    let (_, run) = run.ok_or_else(|| BackendError::mismatch(pattern))?;
    run(emit, nodes)
}

fn run<G: Runs>(emit: &mut Emit<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let group = group_of::<G>(emit.graph, nodes).filter(|group| group.fits(emit.graph, emit.kv_type));
    group.ok_or_else(|| BackendError::mismatch(G::NAME))?.emit(emit)
}

/// A norm of whole rows that a block can hold: its attributes go with the launch.
fn whole_norm(graph: &Graph, norm: &RowNorm) -> bool {
    let RowNorm { node: _, x, weight: Some(_), eps: _, kind: _, y: _ } = norm else { return false };
    width(graph, *x) <= MAX_NORM_ELEMS && width(graph, *x).is_multiple_of(4)
}

/// `RowNorm` in kernels/common/staged.cuh: the weight, the bias, eps, and whether the mean is taken off. None: no norm.
fn norm_params(emit: &Emit<'_>, norm: Option<&RowNorm>) -> [Param; 4] {
    let Some(RowNorm { node: _, x: _, weight, eps, kind, y: _ }) = norm else {
        return [Param::NULL, Param::NULL, Param::F32(0.0), int(0)];
    };
    let (bias, centred) = match kind {
        RowNormKind::Rms => (None, 0),
        RowNormKind::Layer { bias } => (*bias, 1),
    };
    [emit.weights.opt_vector(*weight), emit.weights.opt_vector(bias), Param::F32(*eps), int(centred)]
}

/// Any rows of any experts, in a format that grouped launches read.
fn any_rows(graph: &Graph, slice: &WeightSlice) -> bool {
    let WeightSlice { tensor, rows: _, experts: _, home: WeightHome::Device } = slice;
    is_grouped(graph.weight(*tensor).format)
}

/// Whether kernels/common/formats.cuh has the format; the others are in more_formats.cuh, for launches of one operation.
fn is_grouped(format: Format) -> bool {
    match format {
        Format::F32
        | Format::F16
        | Format::Bf16
        | Format::Q4_0
        | Format::Q4_1
        | Format::Q5_0
        | Format::Q5_1
        | Format::Q8_0
        | Format::Q2K
        | Format::Q3K
        | Format::Q4K
        | Format::Q5K
        | Format::Q6K
        | Format::Iq4Nl
        | Format::Iq4Xs
        | Format::Mxfp4 => true,
        Format::Iq2Xxs
        | Format::Iq2Xs
        | Format::Iq2S
        | Format::Iq3Xxs
        | Format::Iq3S
        | Format::Iq1S
        | Format::Iq1M
        | Format::Tq1_0
        | Format::Tq2_0
        | Format::Nvfp4
        | Format::Q1_0
        | Format::Q2_0 => false,
    }
}

/// Experts' matmul of any rows, with a bias or none.
fn any_experts(graph: &Graph, product: &ExpertProduct) -> bool {
    let ExpertProduct { node: _, x: _, ids: _, weight, bias: _, y: _ } = product;
    any_rows(graph, weight)
}

/// One row for a token: what a launch without a grid over rows computes.
fn one_row(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).shape.0[..], [Dim::Tokens, Dim::Fixed(_)])
}

fn width(graph: &Graph, value: ValueId) -> usize {
    graph.value(value).shape.width().unwrap_or(usize::MAX)
}

/// What lies beside something else, as `Part` in kernels/common/part.cuh reads it: where, elements of a head and from one
/// head to the next, the first of them, and where somebody reads it by itself. Without a part the value as it is.
fn part_params(emit: &Emit<'_>, part: Option<&Sliced>, value: ValueId) -> Result<[Param; 5], BackendError> {
    let Some(Sliced { node: _, x, heads, start, len, y }) = part else {
        return Ok([emit.value(value)?, int(0), int(0), int(0), Param::NULL]);
    };
    let step = emit.width(*x)? / (*heads).max(1);
    Ok([emit.value(*x)?, int(*len), int(step), int(*start), emit.opt_value(*y)])
}

/// Forms of a row of activations that a block keeps: `Stage` in kernels/common/staged.cuh.
const STAGE_Q8: i32 = 1;
const STAGE_F32: i32 = 2;

/// The form that a format takes under the executable's profile.
fn stage(emit: &Emit<'_>, format: Format) -> i32 {
    let q8 = matches!(emit.profile, ActProfile::Q8 { .. }) && format.is_quantized();
    if q8 { STAGE_Q8 } else { STAGE_F32 }
}

/// Blocks of a kernel for `rows` warps' worth of work: at most as many as the device holds at once, whose warps take further rows
/// in turn. More would come in a second wave, and repeat what every block prepares.
fn blocks(emit: &Emit<'_>, kernel: &'static str, rows: usize, shared: usize) -> Result<usize, BackendError> {
    Ok(rows.div_ceil(matmul::ROWS_PER_BLOCK).min(emit.blocks_at_once(kernel, matmul::THREADS, shared)?))
}

/// Shared bytes of `n` elements in 8 bits, where some matrix takes them: steps, scales of 32 and sums of 16, of whole 256
/// (`staged_words` in kernels/common/staged.cuh).
fn staged_bytes(n: usize, stage: i32) -> usize {
    if stage & STAGE_Q8 != 0 { n.next_multiple_of(256) / 8 * 11 } else { 0 }
}

/// Shared bytes of a row of `n` elements that is normed: also in f32, where some matrix takes it so.
fn normed_bytes(n: usize, stage: i32) -> usize {
    staged_bytes(n, stage) + if stage & STAGE_F32 != 0 { 4 * n } else { 0 }
}
