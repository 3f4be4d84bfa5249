//! Norm, one gated MLP or experts, post-norm, residual.

use super::branch::Branch;
use super::{dense_ffn, moe, norm, ungated_moe};
use crate::architectures::lowering::Presence;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{FfnConfig, LayerConfig};
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
    /// What the router reads.
    pub router_input: RouterInput,
    /// The router's bias.
    pub router_bias: Presence,
    /// A factor of each expert's weight.
    pub expert_scale: Presence,
    /// Biases of the routed experts' three products.
    pub expert_bias: Presence,
    /// The routed experts' function.
    pub expert_activation: ActivationFn,
    /// The function of dense layers and of the shared expert.
    pub activation: ActivationFn,
    /// Limits bound what goes into a SwiGLU's silu, not what comes out of it.
    pub limit_before_silu: bool,
    /// The routed experts and the shared one count half each.
    pub mean_with_shared_expert: bool,
    /// The router's weights multiply what the experts read, not what they give.
    pub weights_on_input: bool,
    /// The tensor of the norm of what comes out.
    pub post_norm: Option<&'static str>,
}

/// What a router reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterInput {
    /// What the experts read.
    Normed,
    /// The residual stream as it enters the layer, in front of attention.
    LayerInput,
    /// The residual stream under a norm of its own, divided by √hidden_size.
    OwnNorm,
}

impl FfnSpec {
    /// SwiGLU, without biases or a gate of the shared expert.
    pub const PLAIN: FfnSpec = FfnSpec {
        norm: tensor::FFN_NORM,
        selection_bias: Presence::Never,
        selection_bias_name: tensor::EXP_PROBS_B,
        shared_expert_gate: Presence::Never,
        router_input: RouterInput::Normed,
        router_bias: Presence::Never,
        expert_scale: Presence::Never,
        expert_bias: Presence::Never,
        expert_activation: ActivationFn::Silu,
        activation: ActivationFn::Silu,
        limit_before_silu: false,
        mean_with_shared_expert: false,
        weights_on_input: false,
        post_norm: None,
    };
}

/// Appends a layer's feed-forward part to the residual stream `x` [T, D]; `layer_input` is what it was in front of attention.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [x, layer_input]: [ValueId; 2],
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let ffn = l.config.layers[layer.index()].ffn.clone();
    if ffn == FfnConfig::Absent {
        return Ok(x);
    }
    let normed = norm::lower(l, at, "ffn_norm", &blk(layer.index(), spec.norm), x, 1)?;
    l.graph.tap(at, Stage::FfnNorm, &[normed])?;
    let out = branch(l, layer, [normed, x, layer_input], spec)?.scaled;
    let out = post_norm(l, layer, out, spec)?;
    let residual = only(l.graph.push(at, "ffn_residual", Op::Add, &[x, out])?);
    l.graph.tap(at, Stage::PostFfnResidual, &[residual])?;
    Ok(residual)
}

/// The norm of what comes out, where there is one.
pub(in crate::architectures) fn post_norm(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    out: ValueId,
    spec: &FfnSpec,
) -> Result<ValueId, LowerError> {
    let Some(name) = spec.post_norm else { return Ok(out) };
    let out = norm::lower(l, Some(layer), "post_ffn_norm", &blk(layer.index(), name), out, 1)?;
    l.graph.tap(Some(layer), Stage::PostFfnNorm, &[out])?;
    Ok(out)
}

/// The part between the norms, of the normed input; the residual stream and what it was in front of attention are for
/// routers that read those.
pub(in crate::architectures) fn branch(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [normed, x, layer_input]: [ValueId; 3],
    spec: &FfnSpec,
) -> Result<Branch, LowerError> {
    let LayerConfig { attention: _, mixer: _, ffn, expert_limit, limit } =
        l.config.layers[layer.index()].clone();
    let limited = |limit: Option<f32>, plain| match limit {
        None => plain,
        Some(limit) if spec.limit_before_silu => ActivationFn::BoundedSwiglu { limit },
        Some(limit) => ActivationFn::LimitedSwiglu { limit },
    };
    let spec = &FfnSpec {
        expert_activation: limited(expert_limit, spec.expert_activation),
        activation: limited(limit, spec.activation),
        ..*spec
    };
    match ffn {
        FfnConfig::Absent => Ok(Branch { scaled: normed, plain: normed }),
        FfnConfig::Dense { intermediate_size } => {
            dense_ffn::lower(l, layer, normed, intermediate_size, spec.activation)
        }
        FfnConfig::Moe(config) if !config.gated => ungated_moe::lower(l, layer, normed, &config, spec),
        FfnConfig::Moe(config) => {
            let routed = match spec.router_input {
                RouterInput::Normed => normed,
                RouterInput::LayerInput => layer_input,
                RouterInput::OwnNorm => x,
            };
            let choice = moe::route(l, layer, routed, &config, spec)?;
            moe::lower(l, layer, normed, choice, &config, spec)
        }
    }
}
