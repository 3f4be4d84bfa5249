//! More of the models whose shapes are known: small experts beside the chosen ones, mamba1, indexers, compressed attention.

use super::preset::{Mixture, Preset};
use super::presets::{DEEPSEEK_V3, QWEN3_30B};
use super::{family, family_compressed, family_hybrid, family_latent};

pub(super) const GROVEMOE_33B: Preset = Preset {
    name: "grovemoe-33b-a3b",
    base_name: "GroveMoE-Inst",
    size_label: "33B",
    family: &family::GROVEMOE,
    max_position_embeddings: 40_960,
    rope_theta: 1e6,
    ..QWEN3_30B
};

pub(super) const JAMBA_MINI: Preset = Preset {
    name: "jamba-1.7-mini",
    base_name: "AI21-Jamba-Mini-1.7",
    size_label: "16x3.8B",
    family: &family_hybrid::JAMBA,
    num_hidden_layers: 32,
    hidden_size: 4096,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    num_experts: 16,
    num_experts_per_tok: 2,
    moe_intermediate_size: 14_336,
    intermediate_size: 14_336,
    vocab_size: 65_536,
    max_position_embeddings: 262_144,
    ..QWEN3_30B
};

pub(super) const DEEPSEEK_V3_2: Preset = Preset {
    name: "deepseek-v3.2",
    base_name: "DeepSeek-V3.2",
    family: &family_latent::DEEPSEEK_V3_2,
    ..DEEPSEEK_V3
};

/// Experts in MXFP4, as the model is released.
pub(super) const DEEPSEEK_V4_FLASH: Preset = Preset {
    name: "deepseek-v4-flash",
    base_name: "DeepSeek-V4-Flash",
    size_label: "256x13B",
    family: &family_compressed::DEEPSEEK_V4,
    mixture: Mixture::Mxfp4Experts,
    num_hidden_layers: 43,
    hidden_size: 4096,
    num_attention_heads: 64,
    num_key_value_heads: 1,
    head_dim: 512,
    num_experts_per_tok: 6,
    first_k_dense_replace: 0,
    routed_scaling_factor: 1.5,
    max_position_embeddings: 1_048_576,
    rms_norm_eps: 1e-6,
    ..DEEPSEEK_V3
};

pub(super) const GLM_5: Preset = Preset {
    name: "glm-5",
    base_name: "GLM-5",
    size_label: "256x22B",
    family: &family_latent::GLM_5,
    num_hidden_layers: 78,
    hidden_size: 6144,
    num_attention_heads: 64,
    intermediate_size: 12_288,
    vocab_size: 154_880,
    max_position_embeddings: 202_752,
    rope_theta: 1e6,
    rms_norm_eps: 1e-5,
    ..DEEPSEEK_V3
};
