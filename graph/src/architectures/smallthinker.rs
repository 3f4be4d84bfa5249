//! SmallThinker: the router reads the residual stream as it enters the layer, so that its choice is known before attention;
//! experts with ReLU for a gate; in files with a window every fourth layer, the first among them, has neither window nor RoPE.
//!
//! Definition: `fixtures/arch/smallthinker/README.md` of this project's fixtures, after PowerInfer's release.

use super::Architecture;
use super::blocks::decoder::{self, DecoderSpec};
use super::blocks::ffn::{FfnSpec, RouterInput};
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::gguf::keys::arch;
use crate::ir::{ActivationFn, GateKind};

pub(super) const ROW: Architecture =
    Architecture { name: "smallthinker", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    ffn: FfnSpec {
        router_input: RouterInput::LayerInput,
        expert_activation: ActivationFn::Relu,
        ..FfnSpec::PLAIN
    },
    ..DecoderSpec::PLAIN
};

/// Of so many layers the first sees everything.
const PERIOD: usize = 4;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let mut attention = read.attention(&AttentionDefaults::HALF)?;
    let windowed = read.flags_or_first(arch::SLIDING_WINDOW_PATTERN, PERIOD)?;
    let theta = read.opt_positive(arch::ROPE_FREQ_BASE_SWA)?;
    if let Some(window) = Some(read.count(arch::SLIDING_WINDOW)?).filter(|window| *window > 0) {
        for (layer, windowed) in attention.iter_mut().zip(windowed) {
            match windowed {
                true => layer.sliding_window = Some(window),
                false => layer.rope = None,
            }
            if let (Some(rope), Some(theta)) = (&mut layer.rope, theta) {
                rope.theta = f64::from(theta);
            }
        }
    }
    let defaults = MoeDefaults { gate: GateKind::Softmax, norm_topk_prob: true };
    let width = match read.opt_dimension(arch::EXPERT_FEED_FORWARD_LENGTH)? {
        Some(width) => width,
        None => read.dimension(arch::FEED_FORWARD_LENGTH)?,
    };
    let moe = read.moe(&defaults, width, 0)?;
    read.model(attention, read.moe_where(|_| true, moe)?)
}
