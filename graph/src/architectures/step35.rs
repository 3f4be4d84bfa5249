//! Step 3.5 and 3.7: layers with a window have heads and a RoPE base of their own and rotate whole heads, the others half of
//! each, stretched as Llama 3 does; per-head Q/K norm, a sigmoid gate a head; sigmoid router with a selection bias, a shared
//! expert, SwiGLU with limits in some layers; layers for drafting are left out.
//!
//! Definition: Hugging Face transformers, `models/step3p5/modeling_step3p5.py`.

use super::Architecture;
use super::blocks::attention::{AttentionSpec, RopeDivisors};
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor};
use crate::ir::{ActivationFn, GateKind};

pub(super) const ROW: Architecture =
    Architecture { name: "step35", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec {
        qk_norm: Presence::Required,
        rope_divisors: Presence::Optional,
        rope_divisors_of: RopeDivisors::FullAttention,
        gate: Some(ActivationFn::Sigmoid),
        ..AttentionSpec::PLAIN
    },
    ffn: FfnSpec { selection_bias: Presence::Optional, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let windowed = read.flags(arch::SLIDING_WINDOW_PATTERN)?;
    let theta = read.opt_positive(arch::ROPE_FREQ_BASE_SWA)?;
    let mut attention = read.attention(&AttentionDefaults { rope_one_in: 2, ..AttentionDefaults::HALF })?;
    for (layer, _) in attention.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed) {
        layer.sliding_window = Some(window);
        let head_dim = layer.head_dim;
        if let Some(rope) = &mut layer.rope {
            rope.dims = head_dim;
            rope.theta = theta.map_or(rope.theta, f64::from);
        }
    }
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: false };
    let width = read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?;
    let moe = read.moe(&defaults, width, read.count(arch::EXPERT_SHARED_FEED_FORWARD_LENGTH)?)?;
    // Layers with experts are those with a router; the keys that say so too are the converter's.
    read.without_effect(&[
        arch::LEADING_DENSE_BLOCK_COUNT,
        arch::MOE_EVERY_N_LAYERS,
        arch::EXPERT_SHARED_COUNT,
    ]);
    let routed = |layer| read.has(&blk(layer, tensor::FFN_GATE_INP));
    let mut model = read.model(attention, read.moe_where(routed, moe)?)?;
    read.swiglu_limits(&mut model)?;
    Ok(model)
}
