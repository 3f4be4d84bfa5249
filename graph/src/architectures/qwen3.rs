//! Dense Qwen3: Qwen3-MoE's attention with one SwiGLU a layer.
//!
//! Definition: Hugging Face transformers, `models/qwen3/modeling_qwen3.py`.

use super::Architecture;
use super::blocks::attention::AttentionSpec;
use super::blocks::decoder::{self, DecoderSpec};
use super::lowering::Presence;
use crate::config::{AttentionDefaults, ConfigError, ModelConfig, Reader};

pub(super) const ROW: Architecture =
    Architecture { name: "qwen3", configure, lower: |l| decoder::lower(l, &DECODER) };

pub(super) const ATTENTION: AttentionDefaults =
    AttentionDefaults { rope_theta: 1e6, ..AttentionDefaults::HALF };

pub(super) const DECODER: DecoderSpec = DecoderSpec {
    attention: AttentionSpec { qk_norm: Presence::Required, ..AttentionSpec::PLAIN },
    ..DecoderSpec::PLAIN
};

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    read.model(read.attention(&ATTENTION)?, read.dense()?)
}
