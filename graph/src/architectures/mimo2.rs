//! MiMo-V2: layers with a window have attention sinks, a RoPE base and a number of KV heads of their own; values are
//! narrower than keys and scaled; sigmoid router with a selection bias.
//!
//! Definition: `fixtures/arch/mimo2/README.md` of this project's fixtures, after Xiaomi's release.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::FfnSpec;
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::{arch, blk, layer as tensor};
use crate::ir::GateKind;

pub(super) const ROW: Architecture =
    Architecture { name: "mimo2", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { sinks: Presence::Optional, ..AttentionSpec::PLAIN },
    ffn: FfnSpec { selection_bias: Presence::Required, ..FfnSpec::PLAIN },
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let window = read.dimension(arch::SLIDING_WINDOW)?;
    let windowed = read.flags(arch::SLIDING_WINDOW_PATTERN)?;
    let window_theta = read.opt_positive(arch::ROPE_FREQ_BASE_SWA)?;
    let value_scale = read.opt_factor(arch::ATTENTION_VALUE_SCALE)?;
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    for (layer, windowed) in attention.iter_mut().zip(windowed) {
        layer.value_scale = value_scale;
        if windowed {
            layer.sliding_window = Some(window);
            if let (Some(rope), Some(theta)) = (&mut layer.rope, window_theta) {
                rope.theta = f64::from(theta);
            }
        }
    }
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let moe = read.moe(&defaults, read.dimension(arch::EXPERT_FEED_FORWARD_LENGTH)?, 0)?;
    // No key says which layers are dense: those without a router.
    let routed = |layer| read.has(&blk(layer, tensor::FFN_GATE_INP));
    read.model(attention, read.moe_where(routed, moe)?)
}
