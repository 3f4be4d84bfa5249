//! Poolside's Laguna: per-head Q/K norm, a softplus gate of what attention gives, a head or an element; layers with a window
//! have heads, RoPE's base and its range of their own, the others YaRN; dense first layers, sigmoid router with a selection
//! bias, a shared expert.
//!
//! Definition: Hugging Face transformers, `models/laguna/modeling_laguna.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{ActivationFn, GateKind, RopeScaling};

pub(super) const ROW: Architecture =
    Architecture { name: "laguna", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        gate: Some(ActivationFn::Softplus),
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec { selection_bias: Presence::Optional, ..FfnSpec::PLAIN },
};

/// Of so many layers the first sees everything.
const PERIOD: usize = 4;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = Some(read.count(arch::SLIDING_WINDOW)?).filter(|window| *window > 0);
    let windowed = read.flags_or_first(arch::SLIDING_WINDOW_PATTERN, PERIOD)?;
    let theta = read.opt_positive(arch::ROPE_FREQ_BASE_SWA)?;
    let dims = read.opt_dimension(arch::ROPE_DIMENSION_COUNT_SWA)?;
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    for (layer, _) in attention.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed && window.is_some())
    {
        layer.sliding_window = window;
        let head_dim = layer.head_dim;
        if let Some(rope) = &mut layer.rope {
            rope.scaling = RopeScaling::None;
            rope.theta = theta.map_or(rope.theta, f64::from);
            rope.dims = dims.unwrap_or(head_dim);
            if rope.dims > head_dim || rope.dims % 2 != 0 {
                let wanted = format!("an even number up to head_dim {head_dim}");
                return Err(read.wrong(arch::ROPE_DIMENSION_COUNT_SWA, rope.dims, wanted));
            }
        }
    }
    // States the number of experts that stand side by side in the shared one, whose width is stated too.
    read.without_effect(&[arch::EXPERT_SHARED_COUNT]);
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false };
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let moe = read.moe(&defaults, width, read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?)?;
    let dense = read.count(arch::LEADING_DENSE_BLOCK_COUNT)?;
    read.model(attention, read.moe_where(|layer| layer >= dense, moe)?)
}
