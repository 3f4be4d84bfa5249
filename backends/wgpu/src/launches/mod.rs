//! Stage 5, wgpu: the launches that hold several nodes, for steps of a few tokens, and how a launch becomes dispatches.
//!
//! A decode layer is seven dispatches: norm and q, k, v; Q/K norm, RoPE, cache and attention; the merging of its parts;
//! o_proj and residual; norm and router; choice, gate, up and SwiGLU; down, weighted sum and residual. Every workgroup
//! prepares its input for itself rather than have a dispatch do it for all.

mod attend;
mod combine_experts;
mod norm_matmul;
mod norm_qkv;
mod route_experts;

use super::emit::{Emitter, FEW_ROWS};
use super::ops;
use moe_run_graph::ir::{Dim, Graph, LaunchPattern, Node, Op, ValueId, WeightHome, WeightSlice};
use moe_run_graph::passes::Launch;
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;

/// Workgroup memory that WebGPU grants by default.
const WORKGROUP_BYTES: usize = 16384;

/// The groups for steps of up to `tokens` tokens, best first.
pub(super) fn for_tokens(tokens: usize) -> Vec<LaunchPattern> {
    let mut patterns = Vec::new();
    if tokens <= FEW_ROWS {
        patterns.extend([
            norm_qkv::PATTERN,
            norm_matmul::NORM_ROUTER,
            norm_matmul::MATMUL_ADD,
            combine_experts::PATTERN,
        ]);
    }
    if tokens == 1 {
        // With more tokens one workgroup would need what another writes to the cache, and the choice of experts stays a
        // launch of its own, behind which it can be replaced.
        patterns.extend([attend::PATTERN, route_experts::PATTERN]);
    }
    patterns
}

/// Adds the dispatches of a launch.
pub(super) fn emit(e: &mut Emitter<'_>, launch: &Launch) -> Result<(), BackendError> {
    let plan = e.plan;
    let nodes: Vec<&Node> = plan.launch_nodes(launch).collect();
    // An attribute that a group's shader does not know must not be dropped, whoever made the plan.
    let group = for_tokens(1).into_iter().find(|group| group.name == launch.pattern);
    if group.is_some_and(|group| !(group.accepts)(&plan.graph, &nodes)) {
        return Err(BackendError::mismatch(launch.pattern));
    }
    match launch.pattern {
        name if name == norm_qkv::PATTERN.name => norm_qkv::emit(e, &nodes),
        name if name == norm_matmul::NORM_ROUTER.name => norm_matmul::emit_norm_router(e, &nodes),
        name if name == norm_matmul::MATMUL_ADD.name => norm_matmul::emit_matmul_add(e, &nodes),
        name if name == route_experts::PATTERN.name => route_experts::emit(e, &nodes),
        name if name == combine_experts::PATTERN.name => combine_experts::emit(e, &nodes),
        name if name == attend::PATTERN.name => attend::emit(e, &nodes),
        name => match nodes.as_slice() {
            [node] => ops::emit(e, node),
            _ => Err(BackendError::mismatch(name)),
        },
    }
}

/// What a fused launch needs to know of a matrix.
struct Matrix {
    format: Format,
    cols: usize,
    rows: usize,
}

/// The whole matrix of a slice; `None` for a part of one, which only the single ops read.
fn whole(graph: &Graph, slice: &WeightSlice) -> Option<Matrix> {
    let WeightSlice { tensor, rows: sliced, experts: chosen, home: WeightHome::Device } = slice;
    let decl = graph.weight(*tensor);
    let (cols, rows) = match decl.shape[..] {
        [rows, cols] => (cols, rows),
        [experts, rows, cols] if chosen.as_ref().is_none_or(|e| *e == (0..experts)) => (cols, rows),
        _ => return None,
    };
    (*sliced == (0..rows)).then_some(Matrix { format: decl.format, cols, rows })
}

/// The matrix of a plain MatMul: whole, without bias or scale.
fn plain_matmul(graph: &Graph, node: &Node) -> Option<Matrix> {
    let Op::MatMul { weight, bias: None, scale: None } = &node.op else { return None };
    whole(graph, weight)
}

/// The matrix of an ExpertMatMul over all experts, without bias.
fn plain_experts(graph: &Graph, node: &Node) -> Option<Matrix> {
    let Op::ExpertMatMul { weight, bias: None } = &node.op else { return None };
    whole(graph, weight)
}

/// A norm of whole rows: its weight and eps go with the launch.
fn whole_norm(node: &Node) -> bool {
    matches!(node.op, Op::RmsNorm { weight: Some(_), eps: _, heads: 1 })
}

/// One row for a token: what a launch with tokens along y computes.
fn row_per_token(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).shape.0[..], [Dim::Tokens, Dim::Fixed(_)])
}

/// Workgroup memory for `elems` activations made 8-bit: a byte each and a scale for 32.
fn staged_bytes(elems: usize) -> usize {
    elems + elems / 8
}
