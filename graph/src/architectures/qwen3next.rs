//! Qwen3-Next and Qwen3-Coder-Next: Qwen3.5's layers, with the delta nets' value heads in the checkpoint's order.
//!
//! Definition: Hugging Face transformers, `models/qwen3_next/modeling_qwen3_next.py`.

use super::Architecture;
use super::blocks::decoder;
use super::qwen35moe::{DECODER, experts, model};
use crate::config::{ConfigError, ModelConfig, Reader};
use crate::ir::HeadMap;

pub(super) const ROW: Architecture =
    Architecture { name: "qwen3next", configure, lower: |l| decoder::lower(l, &DECODER) };

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    model(read, experts(read)?, HeadMap::Grouped)
}
