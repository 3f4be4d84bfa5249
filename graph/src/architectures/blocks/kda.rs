//! Kimi's delta attention: norm, q, k and v each through a causal convolution, the gated delta rule with a decay for each element
//! of a key, a gated norm of each head, a product, residual.
//!
//! Definition: Kimi Linear (arXiv 2510.26692), Hugging Face transformers, `models/kimi_linear/modeling_kimi_linear.py`.

use super::delta_net::{gated_norm, rule};
use super::mixer;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::DeltaNetConfig;
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, LayerIdx, Op, Stage, ValueId};

/// Appends a layer's mixer to the residual stream `x` [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    config: &DeltaNetConfig,
    decay_bound: Option<f32>,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let (heads, width, hidden_size) = (config.num_value_heads, config.value_width(), l.config.hidden_size);
    let normed = mixer::begin(l, layer, x)?;
    let mut mixed = [normed; 3];
    let parts = [
        ("q_proj", tensor::ATTN_Q, "q_conv", tensor::SSM_CONV1D_Q),
        ("k_proj", tensor::ATTN_K, "k_conv", tensor::SSM_CONV1D_K),
        ("v_proj", tensor::ATTN_V, "v_conv", tensor::SSM_CONV1D_V),
    ];
    for (mixed, (product, matrix, conv, weight)) in mixed.iter_mut().zip(parts) {
        let matrix = l.matrix(&file(matrix), width, hidden_size)?;
        let x = mixer::project(l, layer, product, matrix, normed)?;
        let conv = mixer::Conv {
            name: conv,
            weight,
            bias: None,
            activation: Some(ActivationFn::Silu),
            kernel: config.conv_kernel,
        };
        *mixed = mixer::convolve(l, layer, x, &conv)?;
    }
    l.graph.tap(at, Stage::ConvOut, &mixed)?;
    let [q, k, v] = mixed;
    let qk = only(l.graph.push(at, "qk_concat", Op::Concat { heads: 1 }, &[q, k])?);
    let qkv = only(l.graph.push(at, "qkv_concat", Op::Concat { heads: 1 }, &[qk, v])?);

    let weight = l.matrix(&file(tensor::SSM_BETA), heads, hidden_size)?;
    let b = mixer::project(l, layer, "b_proj", weight, normed)?;
    let dt = product_or_two(
        l,
        layer,
        normed,
        [tensor::SSM_F_A, tensor::SSM_F_B],
        ["f_proj", "f_a_proj", "f_b_proj"],
        config,
    )?;
    let gate = product_or_two(
        l,
        layer,
        normed,
        [tensor::SSM_G_A, tensor::SSM_G_B],
        ["g_proj", "g_a_proj", "g_b_proj"],
        config,
    )?;
    let a = l.flattened(&file(tensor::SSM_A), &[heads, 1])?;
    let gates =
        Op::DeltaGates { a, dt_bias: l.vector(&file(tensor::SSM_DT_BIAS), width)?, bound: decay_bound };
    let out = rule(l, layer, qkv, [b, dt], gates, config)?;
    let gated = gated_norm(l, layer, [gate, out], heads, ActivationFn::Sigmoid)?;
    mixer::end(l, layer, x, gated, tensor::ATTN_OUTPUT)
}

/// An element for each element of a head: through the matrices a and b, with a head's elements between them, or, in files
/// without b, through a alone.
fn product_or_two(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    [a, b]: [&str; 2],
    [alone, first, second]: [&'static str; 3],
    config: &DeltaNetConfig,
) -> Result<ValueId, LowerError> {
    let file = |rest: &str| blk(layer.index(), rest);
    let (width, rank, hidden_size) = (config.value_width(), config.value_head_dim, l.config.hidden_size);
    if !l.has(&file(b)) {
        let weight = l.matrix(&file(a), width, hidden_size)?;
        return mixer::project(l, layer, alone, weight, normed);
    }
    let weight = l.matrix(&file(a), rank, hidden_size)?;
    let between = mixer::project(l, layer, first, weight, normed)?;
    let weight = l.matrix(&file(b), width, rank)?;
    mixer::project(l, layer, second, weight, between)
}
