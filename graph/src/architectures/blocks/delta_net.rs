//! Norm, q, k and v through a causal convolution, the gated delta rule, a gated norm of each head, a product, residual.

use super::mixer::{self, Conv};
use super::norm;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::DeltaNetConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, DeltaRuleAttrs, HeadMap, LayerIdx, Op, Stage, StateRole, ValueId};

/// Appends a layer's gated delta net to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    config: &DeltaNetConfig,
) -> Result<ValueId, LowerError> {
    let heads = config.num_value_heads;
    let normed = mixer::begin(l, layer, x)?;
    let (qkv, z) = project(l, layer, normed, config)?;
    let conv = Conv {
        name: "conv",
        weight: tensor::SSM_CONV1D,
        bias: None,
        activation: Some(ActivationFn::Silu),
        kernel: config.conv_kernel,
    };
    let qkv = mixer::conv(l, layer, qkv, &conv)?;
    let [b, dt] = gates(l, layer, normed, config)?;
    let file = |rest: &str| blk(layer.index(), rest);
    let (a, dt_bias) = (l.vector(&file(tensor::SSM_A), heads)?, l.vector(&file(tensor::SSM_DT_BIAS), heads)?);
    let gates = Op::DeltaGates { a, dt_bias, bound: None };
    let out = rule(l, layer, qkv, [b, dt], gates, config)?;
    let gated = gated_norm(l, layer, [z, out], heads, ActivationFn::Silu)?;
    mixer::end(l, layer, x, gated, tensor::SSM_OUT)
}

/// Appends the gates, of what β and the decay are made of, and the rule with its state.
pub(super) fn rule(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    qkv: ValueId,
    gates_of: [ValueId; 2],
    gates: Op,
    config: &DeltaNetConfig,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let gates = l.graph.push(at, "delta_gates", gates, &gates_of)?;
    l.graph.tap(at, Stage::SsmBeta, &[gates[0]])?;
    l.graph.tap(at, Stage::SsmDecay, &[gates[1]])?;
    let shape = [config.num_value_heads, config.key_head_dim, config.value_head_dim];
    let state = l.graph.add_sequence_state(StateRole::Ssm, layer, &shape);
    let attrs = DeltaRuleAttrs {
        num_key_heads: config.num_key_heads,
        num_value_heads: config.num_value_heads,
        key_head_dim: config.key_head_dim,
        value_head_dim: config.value_head_dim,
        head_map: config.head_map,
        eps: l.config.rms_norm_eps,
        scale: (1.0 / (config.key_head_dim as f64).sqrt()) as f32,
        state,
    };
    let inputs = [qkv, gates[0], gates[1], l.graph.inputs.positions, l.graph.inputs.sequence];
    let out = only(l.graph.push(at, "delta_rule", Op::DeltaRule(attrs), &inputs)?);
    l.graph.tap(at, Stage::SsmOut, &[out])?;
    Ok(out)
}

/// Appends a norm of each head of what the rule gave, times the gate's activation.
pub(super) fn gated_norm(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [gate, out]: [ValueId; 2],
    heads: usize,
    activation: ActivationFn,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let out = norm::lower(l, at, "ssm_norm", &blk(layer.index(), tensor::SSM_NORM), out, heads)?;
    let gated = l.graph.push(at, "ssm_gate", Op::GatedAct { activation }, &[gate, out])?[1];
    l.graph.tap(at, Stage::SsmNorm, &[gated])?;
    Ok(gated)
}

/// q, k and v side by side, and the gate of what comes out. Old files of Qwen3-Next have all four in one tensor, in which each
/// key head's rows of q, of k, of v and of the gate follow each other.
fn project(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &DeltaNetConfig,
) -> Result<(ValueId, ValueId), LowerError> {
    let (keys, values) = (config.key_width(), config.value_width());
    let hidden_size = l.config.hidden_size;
    let fused = blk(layer.index(), tensor::SSM_IN);
    if config.head_map == HeadMap::Grouped && l.has(&fused) {
        let weight = l.matrix(&fused, 2 * keys + 2 * values, hidden_size)?;
        let all = mixer::project(l, layer, "qkvz_proj", weight, normed)?;
        return split(l, layer, all, config);
    }
    let weight = l.matrix(&blk(layer.index(), tensor::ATTN_QKV), 2 * keys + values, hidden_size)?;
    let qkv = mixer::project(l, layer, "qkv_proj", weight, normed)?;
    let weight = l.matrix(&blk(layer.index(), tensor::ATTN_GATE), values, hidden_size)?;
    Ok((qkv, mixer::project(l, layer, "z_proj", weight, normed)?))
}

/// q, k and v side by side, and the gate, of a product that has them key head by key head.
fn split(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    all: ValueId,
    config: &DeltaNetConfig,
) -> Result<(ValueId, ValueId), LowerError> {
    let (at, heads) = (Some(layer), config.num_key_heads);
    let (keys, values) = (config.key_head_dim, config.value_width() / heads);
    let mut parts = [all; 4];
    let mut start = 0;
    let named = [("qkvz_q", keys), ("qkvz_k", keys), ("qkvz_v", values), ("qkvz_z", values)];
    for (part, (name, len)) in parts.iter_mut().zip(named) {
        *part = only(l.graph.push(at, name, Op::Slice { heads, start, len }, &[all])?);
        start += len;
    }
    let [q, k, v, z] = parts;
    let qk = only(l.graph.push(at, "qk_concat", Op::Concat { heads: 1 }, &[q, k])?);
    Ok((only(l.graph.push(at, "qkv_concat", Op::Concat { heads: 1 }, &[qk, v])?), z))
}

/// What the delta rule's β and decay are made of: two tensors or, in Qwen3-Next's files, one, in which each key head's rows of
/// the first are followed by its rows of the second.
fn gates(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &DeltaNetConfig,
) -> Result<[ValueId; 2], LowerError> {
    let (heads, hidden_size) = (config.num_value_heads, l.config.hidden_size);
    let file = |rest: &str| blk(layer.index(), rest);
    let fused = file(tensor::SSM_BA);
    if !l.has(&fused) {
        let weight = l.matrix(&file(tensor::SSM_BETA), heads, hidden_size)?;
        let b = mixer::project(l, layer, "b_proj", weight, normed)?;
        let weight = l.matrix(&file(tensor::SSM_ALPHA), heads, hidden_size)?;
        return Ok([b, mixer::project(l, layer, "a_proj", weight, normed)?]);
    }
    let weight = l.matrix(&fused, 2 * heads, hidden_size)?;
    let both = mixer::project(l, layer, "ba_proj", weight, normed)?;
    let len = heads / config.num_key_heads;
    let mut parts = [both; 2];
    for (i, (part, name)) in parts.iter_mut().zip(["ba_proj_b", "ba_proj_a"]).enumerate() {
        let op = Op::Slice { heads: config.num_key_heads, start: i * len, len };
        *part = only(l.graph.push(Some(layer), name, op, &[both])?);
    }
    Ok(parts)
}
