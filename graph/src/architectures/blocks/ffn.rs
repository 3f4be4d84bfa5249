//! Norm, one SwiGLU or experts, residual.

use super::{dense_ffn, moe, norm, ungated_moe};
use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::FfnConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, LayerIdx, Op, Stage, ValueId};

/// What an architecture's feed-forward part is made of.
#[derive(Debug, Clone, Copy)]
pub struct FfnSpec {
    /// The tensor of the norm in front.
    pub norm: &'static str,
    /// What is added to the router's gate values for the choice alone.
    pub selection_bias: Presence,
    /// Its tensor.
    pub selection_bias_name: &'static str,
    /// The gate of the shared expert: a product and a sigmoid.
    pub shared_expert_gate: Presence,
    /// The router's bias.
    pub router_bias: Presence,
    /// Biases of the routed experts' three products.
    pub expert_bias: Presence,
    /// The routed experts' function.
    pub expert_activation: ActivationFn,
}

impl FfnSpec {
    /// SwiGLU, without biases or a gate of the shared expert.
    pub const PLAIN: FfnSpec = FfnSpec {
        norm: tensor::FFN_NORM,
        selection_bias: Presence::Never,
        selection_bias_name: tensor::EXP_PROBS_B,
        shared_expert_gate: Presence::Never,
        router_bias: Presence::Never,
        expert_bias: Presence::Never,
        expert_activation: ActivationFn::Silu,
    };
}

/// Appends a layer's feed-forward part to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let ffn = l.config.layers[layer.index()].ffn.clone();
    if ffn == FfnConfig::Absent {
        return Ok(x);
    }
    let normed = norm::lower(l, at, "ffn_norm", &blk(layer.index(), spec.norm), x, 1)?;
    l.graph.tap(at, Stage::FfnNorm, &[normed])?;
    let out = match ffn {
        FfnConfig::Absent => return Ok(x),
        FfnConfig::Dense { intermediate_size } => dense_ffn::lower(l, layer, normed, intermediate_size)?,
        FfnConfig::Moe(config) if config.gated => moe::lower(l, layer, normed, &config, spec)?,
        FfnConfig::Moe(config) => ungated_moe::lower(l, layer, normed, &config, spec)?,
    };
    let residual = only(l.graph.push(at, "ffn_residual", Op::Add, &[x, out.scaled])?);
    l.graph.tap(at, Stage::PostFfnResidual, &[residual])?;
    Ok(residual)
}
