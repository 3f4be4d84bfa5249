//! Dense Qwen2 and Qwen2.5: biased q, k and v, one SwiGLU a layer.
//!
//! Definition: Hugging Face transformers, `models/qwen2/modeling_qwen2.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, Reader};

pub(super) const ROW: Architecture =
    Architecture { name: "qwen2", configure, lower: |l| decoder::lower(l, &DECODER) };

const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qkv_bias: Presence::Required, ..AttentionSpec::PLAIN },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    read.model(read.attention(&AttentionDefaults::HALF)?, read.dense()?)
}
