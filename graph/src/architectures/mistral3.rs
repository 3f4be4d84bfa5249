//! Ministral 3 and the dense models like it: Llama with YaRN whose angles have no factor, and queries that grow with their
//! position.
//!
//! Definition: Hugging Face transformers, `models/ministral3/modeling_ministral3.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, Reader};

pub(super) const ROW: Architecture =
    Architecture { name: "mistral3", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { rope_divisors: Presence::Optional, ..AttentionSpec::PLAIN },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let mut attention = read.attention(&AttentionDefaults::INTERLEAVED)?;
    let temperature = read.temperature()?;
    for layer in &mut attention {
        layer.temperature = temperature;
        if let Some(rope) = &mut layer.rope {
            read.without_stretched_angles(rope)?;
        }
    }
    read.model(attention, read.dense()?)
}
