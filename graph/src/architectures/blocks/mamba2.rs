//! Norm, one product into gate, inputs and time steps, a causal convolution, mamba2's scan, a gated norm of each group, a
//! product, residual.

use super::mixer::{self, Conv};
use crate::architectures::{LowerError, Lowering, only};
use crate::config::Mamba2Config;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, DecayOf, LayerIdx, Op, SsmScanAttrs, Stage, StateRole, ValueId, WeightSlice};

/// Appends a layer's mamba2 mixer to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    config: &Mamba2Config,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let Mamba2Config { num_heads, head_dim, state_size, n_groups, conv_kernel } = *config;
    let inner = num_heads * head_dim;
    let conv_width = inner + 2 * n_groups * state_size;
    let normed = mixer::begin(l, layer, x)?;
    let all = l.matrix(&file(tensor::SSM_IN), inner + conv_width + num_heads, l.config.hidden_size)?;
    let rows = |from: usize, len: usize| WeightSlice { rows: from..from + len, ..all.clone() };
    let z = mixer::project(l, layer, "z_proj", rows(0, inner), normed)?;
    let xbc = mixer::project(l, layer, "xbc_proj", rows(inner, conv_width), normed)?;
    let dt = mixer::project(l, layer, "dt_proj", rows(inner + conv_width, num_heads), normed)?;
    let conv = Conv {
        name: "conv",
        weight: tensor::SSM_CONV1D,
        bias: Some(tensor::SSM_CONV1D_BIAS),
        activation: Some(ActivationFn::Silu),
        kernel: conv_kernel,
    };
    let xbc = mixer::conv(l, layer, xbc, &conv)?;

    let state = l.graph.add_sequence_state(StateRole::Ssm, layer, &[num_heads, head_dim, state_size]);
    let attrs = SsmScanAttrs {
        num_heads,
        head_dim,
        state_size,
        n_groups,
        decay_of: DecayOf::Head,
        a: l.flattened(&file(tensor::SSM_A), &[num_heads, 1])?,
        d: l.flattened(&file(tensor::SSM_D), &[num_heads, 1])?,
        dt_bias: l.vector(&file(tensor::SSM_DT_BIAS), num_heads)?,
        state,
    };
    let inputs = [xbc, dt, l.graph.inputs.positions, l.graph.inputs.sequence];
    let out = only(l.graph.push(at, "ssm_scan", Op::SsmScan(attrs), &inputs)?);
    l.graph.tap(at, Stage::SsmOut, &[out])?;
    // The gate comes first here, the norm behind it.
    let gate = Op::GatedAct { activation: ActivationFn::Silu };
    let gated = l.graph.push(at, "ssm_gate", gate, &[z, out])?[1];
    let weight = l.flattened(&file(tensor::SSM_NORM), &[n_groups, inner / n_groups])?;
    let op = Op::RmsNorm { weight: Some(weight), eps: l.config.rms_norm_eps, heads: n_groups };
    let normed = only(l.graph.push(at, "ssm_norm", op, &[gated])?);
    l.graph.tap(at, Stage::SsmNorm, &[normed])?;
    mixer::end(l, layer, x, normed, tensor::SSM_OUT)
}
