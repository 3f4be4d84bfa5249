//! Norm, one product into inputs and gate, a causal convolution, of whose result time steps, B and C are made, each under a norm
//! of its own; mamba1's scan, the gate, a product, residual.

use super::mixer::{self, Conv};
use super::norm;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::Mamba1Config;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, DecayOf, LayerIdx, Op, SsmScanAttrs, Stage, StateRole, ValueId, WeightSlice};

/// Appends a layer's mamba1 mixer to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    config: &Mamba1Config,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let Mamba1Config { inner_size: inner, state_size, time_step_rank: rank, conv_kernel } = *config;
    let normed = mixer::begin(l, layer, x)?;
    let all = l.matrix(&file(tensor::SSM_IN), 2 * inner, l.config.hidden_size)?;
    let rows = |from: usize| WeightSlice { rows: from..from + inner, ..all.clone() };
    let mixed = mixer::project(l, layer, "x_proj", rows(0), normed)?;
    let z = mixer::project(l, layer, "z_proj", rows(inner), normed)?;
    let conv = Conv {
        name: "conv",
        weight: tensor::SSM_CONV1D,
        bias: Some(tensor::SSM_CONV1D_BIAS),
        activation: Some(ActivationFn::Silu),
        kernel: conv_kernel,
    };
    let mixed = mixer::conv(l, layer, mixed, &conv)?;

    let all = l.matrix(&file(tensor::SSM_X), rank + 2 * state_size, inner)?;
    let mut parts = [mixed; 3];
    let of = [
        ("dt_a_proj", "dt_norm", tensor::SSM_DT_NORM, Stage::SsmDtNorm, 0..rank),
        ("b_proj", "b_norm", tensor::SSM_B_NORM, Stage::SsmBNorm, rank..rank + state_size),
        ("c_proj", "c_norm", tensor::SSM_C_NORM, Stage::SsmCNorm, rank + state_size..rank + 2 * state_size),
    ];
    for (part, (product, name, weight, stage, rows)) in parts.iter_mut().zip(of) {
        let x = mixer::project(l, layer, product, WeightSlice { rows, ..all.clone() }, mixed)?;
        *part = norm::lower(l, at, name, &file(weight), x, 1)?;
        l.graph.tap(at, stage, &[*part])?;
    }
    let [dt, b, c] = parts;
    let weight = l.matrix(&file(tensor::SSM_DT), inner, rank)?;
    let dt = mixer::project(l, layer, "dt_proj", weight, dt)?;
    let bc = only(l.graph.push(at, "bc", Op::Concat { heads: 1 }, &[b, c])?);
    let xbc = only(l.graph.push(at, "xbc", Op::Concat { heads: 1 }, &[mixed, bc])?);

    let state = l.graph.add_sequence_state(StateRole::Ssm, layer, &[inner, state_size]);
    let attrs = SsmScanAttrs {
        num_heads: inner,
        head_dim: 1,
        state_size,
        n_groups: 1,
        decay_of: DecayOf::Element,
        a: l.floats(&file(tensor::SSM_A), &[inner, state_size])?,
        d: l.vector(&file(tensor::SSM_D), inner)?,
        dt_bias: l.vector(&file(tensor::SSM_DT_BIAS), inner)?,
        state,
    };
    let inputs = [xbc, dt, l.graph.inputs.positions, l.graph.inputs.sequence];
    let out = only(l.graph.push(at, "ssm_scan", Op::SsmScan(attrs), &inputs)?);
    let gate = Op::GatedAct { activation: ActivationFn::Silu };
    let gated = l.graph.push(at, "ssm_gate", gate, &[z, out])?[1];
    l.graph.tap(at, Stage::SsmOut, &[gated])?;
    mixer::end(l, layer, x, gated, tensor::SSM_OUT)
}
