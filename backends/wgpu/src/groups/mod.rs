//! Stage 5, wgpu: the launches that hold several nodes, for steps of a few tokens, and how a launch becomes dispatches: which
//! of graph/src/groups fit, and their shaders' parameters.
//!
//! A decode layer with experts is seven dispatches: norm and q, k, v; Q/K norm, RoPE, cache and attention; the merging of its
//! parts; o_proj and residual; norm and router; choice, gate, up and SwiGLU; down, weighted sum and residual. Every workgroup
//! prepares its input for itself rather than have a dispatch do it for all.

mod attention_step;
mod delta_step;
mod down_combine;
mod gate_up;
mod gated_matmul;
mod latent_heads;
mod matmul_residual;
mod norm_products;
mod norm_residual;
mod norms_residual;
mod route_gate_up;
mod router_gate_up;

use super::emit::{Emitter, FEW_ROWS, NONE};
use super::ops::{self, activation_params};
use super::params::Param;
use moe_run_graph::groups::parts::{ExpertProduct, Gated, Product, RowNorm, RowNormKind, Sliced};
use moe_run_graph::groups::{
    AttentionStep, DeltaStep, DownCombine, GateUp, GatedMatMul, Group, LatentHeads, LaunchPattern,
    MatMulResidual, NormQkv, NormResidual, NormRouter, NormsResidual, RouteGateUp, RouterGateUp, group_of,
};
use moe_run_graph::ir::{Dim, Graph, Node, ValueId, WeightHome, WeightId, WeightSlice};
use moe_run_graph::passes::Launch;
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// Workgroup memory that WebGPU grants by default.
const WORKGROUP_BYTES: usize = 16384;

/// A group that there is a shader for.
trait Runs: Group {
    /// Whether the shader takes it, with a cache of this type.
    fn fits(&self, graph: &Graph, kv_type: KvType) -> bool;

    /// Adds the dispatches of a group that fits.
    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError>;
}

fn pattern<G: Runs>(kv_type: KvType) -> LaunchPattern {
    LaunchPattern::new::<G>(move |graph, group| group.fits(graph, kv_type))
}

/// The groups for steps of up to `tokens` tokens, best first.
pub(super) fn for_tokens(tokens: usize, kv_type: KvType) -> Vec<LaunchPattern> {
    let mut patterns = Vec::new();
    if tokens == 1 {
        // With more tokens one workgroup would need what another writes to the cache, and the choice of experts stays a
        // launch of its own, behind which it can be replaced.
        patterns.extend([pattern::<AttentionStep>(kv_type), pattern::<RouteGateUp>(kv_type)]);
    }
    if tokens <= FEW_ROWS {
        patterns.extend([
            pattern::<DeltaStep>(kv_type),
            pattern::<LatentHeads>(kv_type),
            pattern::<GatedMatMul>(kv_type),
            pattern::<RouterGateUp>(kv_type),
            pattern::<NormQkv>(kv_type),
            pattern::<NormRouter>(kv_type),
            pattern::<GateUp>(kv_type),
            pattern::<DownCombine>(kv_type),
            pattern::<MatMulResidual>(kv_type),
            pattern::<NormsResidual>(kv_type),
            pattern::<NormResidual>(kv_type),
        ]);
    }
    patterns
}

/// Adds the dispatches of a launch.
pub(super) fn emit(e: &mut Emitter<'_>, launch: &Launch) -> Result<(), BackendError> {
    let plan = e.plan;
    let nodes: Vec<&Node> = plan.launch_nodes(launch).collect();
    let run = match (launch.pattern, nodes.as_slice()) {
        (_, [node]) => return ops::emit(e, node),
        (AttentionStep::NAME, _) => run::<AttentionStep>,
        (RouteGateUp::NAME, _) => run::<RouteGateUp>,
        (DeltaStep::NAME, _) => run::<DeltaStep>,
        (LatentHeads::NAME, _) => run::<LatentHeads>,
        (NormsResidual::NAME, _) => run::<NormsResidual>,
        (RouterGateUp::NAME, _) => run::<RouterGateUp>,
        (NormQkv::NAME, _) => run::<NormQkv>,
        (NormRouter::NAME, _) => run::<NormRouter>,
        (GateUp::NAME, _) => run::<GateUp>,
        (DownCombine::NAME, _) => run::<DownCombine>,
        (GatedMatMul::NAME, _) => run::<GatedMatMul>,
        (MatMulResidual::NAME, _) => run::<MatMulResidual>,
        (NormResidual::NAME, _) => run::<NormResidual>,
        (name, _) => return Err(BackendError::mismatch(name)),
    };
    run(e, &nodes)
}

/// An attribute that a group's shader does not know must not be dropped, whoever made the plan.
fn run<G: Runs>(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let group = group_of::<G>(&e.plan.graph, nodes).filter(|group| group.fits(&e.plan.graph, e.kv_type));
    group.ok_or_else(|| BackendError::mismatch(G::NAME))?.emit(e)
}

/// What a fused launch needs to know of a matrix.
struct Matrix {
    format: Format,
    cols: usize,
    rows: usize,
    /// The first of its rows in the tensor, or in each expert there.
    first: usize,
    /// Rows of an expert in the tensor.
    expert_rows: usize,
}

/// The matrix of a slice: any rows, of all experts where there are some.
fn matrix(graph: &Graph, slice: &WeightSlice) -> Option<Matrix> {
    let WeightSlice { tensor, rows, experts: chosen, home: WeightHome::Device } = slice;
    let decl = graph.weight(*tensor);
    let (cols, expert_rows) = match decl.shape[..] {
        [rows, cols] => (cols, rows),
        [experts, rows, cols] if chosen.as_ref().is_none_or(|e| *e == (0..experts)) => (cols, rows),
        _ => return None,
    };
    Some(Matrix { format: decl.format, cols, rows: rows.len(), first: rows.start, expert_rows })
}

/// The matrix of a MatMul, with its bias and scale, or without.
fn product(graph: &Graph, product: &Product) -> Option<Matrix> {
    let Product { node: _, x: _, weight, bias: _, scale: _, y: _ } = product;
    matrix(graph, weight)
}

/// The matrix of an ExpertMatMul over all experts, with its bias or without.
fn experts(graph: &Graph, product: &ExpertProduct) -> Option<Matrix> {
    let ExpertProduct { node: _, x: _, ids: _, weight, bias: _, y: _ } = product;
    matrix(graph, weight)
}

/// A norm of whole rows with a weight: its attributes go with the launch.
fn whole_norm(norm: &RowNorm) -> bool {
    let RowNorm { node: _, x: _, weight: Some(_), eps: _, kind: _, y: _ } = norm else { return false };
    true
}

/// A norm's bias, and whether it takes the mean off.
fn bias_and_centred(norm: Option<&RowNorm>) -> (Option<WeightId>, u32) {
    match norm.map(|norm| norm.kind) {
        None | Some(RowNormKind::Rms) => (None, 0),
        Some(RowNormKind::Layer { bias }) => (bias, 1),
    }
}

/// What a launch's norms are among: 1 if there is any, 2 more if one takes the mean off.
fn norms<'a>(all: impl IntoIterator<Item = Option<&'a RowNorm>>) -> u32 {
    all.into_iter().flatten().fold(0, |flags, norm| flags | 1 | bias_and_centred(Some(norm)).1 << 1)
}

/// The parameters of `common/normed_input.wgsl`: the row `x`, under a norm where there is one, behind what may stand in front.
fn input_params(
    e: &Emitter<'_>,
    x: ValueId,
    norm: Option<&RowNorm>,
    post: Option<&NormResidual>,
) -> Result<Vec<(&'static str, Param)>, BackendError> {
    let stored = |value| e.stored(value).unwrap_or(NONE);
    let (bias, centred) = bias_and_centred(norm);
    let cols = e.shape(x).width().ok_or_else(|| BackendError::mismatch("a row"))? as u32;
    Ok(vec![
        ("x", e.at(post.map_or(x, |post| post.norm.x))?.into()),
        ("cols", cols.into()),
        ("norm", e.small(norm.and_then(|norm| norm.weight))?.into()),
        ("norm_bias", e.small(bias)?.into()),
        ("centred", centred.into()),
        ("eps", norm.map_or(0.0, |norm| norm.eps).into()),
        ("norms", norms([norm]).into()),
        ("normed", norm.map_or(NONE, |norm| stored(norm.y)).into()),
        ("post_norm", e.small(post.and_then(|post| post.norm.weight))?.into()),
        ("post_eps", post.map_or(0.0, |post| post.norm.eps).into()),
        ("post_residual", post.map_or(Ok(NONE), |post| e.at(post.add.other))?.into()),
        ("post_normed", post.map_or(NONE, |post| stored(post.norm.y)).into()),
        ("post_sum", post.map_or(NONE, |post| stored(post.add.y)).into()),
    ])
}

/// What lies beside something else, as `part_element` in `common/part.wgsl` reads it: where, elements of a token's row there, of a
/// head and from one head to the next, the first of them, and where somebody reads it by itself. Without a part the value.
fn part_values(e: &Emitter<'_>, part: Option<&Sliced>, value: ValueId) -> Result<[Param; 6], BackendError> {
    let source = part.map_or(value, |part| part.x);
    let width = e.shape(source).width().ok_or_else(|| BackendError::mismatch("a row"))? as u32;
    let (len, step, from, copy) = match part {
        Some(Sliced { node: _, x: _, heads, start, len, y }) => {
            (*len as u32, width / (*heads).max(1) as u32, *start as u32, e.stored(*y).unwrap_or(NONE))
        }
        None => (0, 0, 0, NONE),
    };
    Ok([e.at(source)?.into(), width.into(), len.into(), step.into(), from.into(), copy.into()])
}

/// The names of a part's parameters: `common/part.wgsl`.
macro_rules! part_names {
    ($name:literal) => {
        [
            concat!($name, "_x"),
            concat!($name, "_row"),
            concat!($name, "_len"),
            concat!($name, "_step"),
            concat!($name, "_from"),
            concat!($name, "_copy"),
        ]
    };
}
use part_names;

/// What gate and up (matrix, tensor, result) and the activation of both tell a shader: rows, layouts, where results go.
fn gated_params(
    e: &mut Emitter<'_>,
    [(gate, gate_weight, gate_y), (up, up_weight, up_y)]: [(&Matrix, &WeightSlice, ValueId); 2],
    act: &Gated,
) -> Result<Vec<(&'static str, Param)>, BackendError> {
    let (gate_layout, up_layout) = (e.layout(gate_weight)?, e.layout(up_weight)?);
    let [gate_y, up_y, activated] =
        [gate_y, up_y, act.activated].map(|value| e.stored(value).unwrap_or(NONE));
    let mut params = vec![
        ("rows", (gate.rows as u32).into()),
        ("gate_first", (gate.first as u32).into()),
        ("up_first", (up.first as u32).into()),
        ("gate_y", gate_y.into()),
        ("up_y", up_y.into()),
        ("activated", activated.into()),
        ("y", e.output(act.y).into()),
        ("gate_row_words", (gate_layout.row_words as u32).into()),
        ("gate_blocks", (gate_layout.blocks as u32).into()),
        ("up_row_words", (up_layout.row_words as u32).into()),
        ("up_blocks", (up_layout.blocks as u32).into()),
    ];
    params.extend(activation_params(Some(act.activation)));
    Ok(params)
}

/// One row for a token: what a launch with tokens along y computes.
fn row_per_token(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).shape.0[..], [Dim::Tokens, Dim::Fixed(_)])
}

/// Workgroup memory for `elems` activations made 8-bit: a byte each and a scale for 32.
fn staged_bytes(elems: usize) -> usize {
    elems + elems / 8
}
