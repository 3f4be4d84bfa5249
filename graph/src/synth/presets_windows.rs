//! More of the models whose shapes are known: those with windows or chunks, and what came with them.

use super::preset::Preset;
use super::presets::{DEEPSEEK_V3, MIXTRAL_8X7B, QWEN3_30B};
use super::{family, family_latent, family_windows};

pub(super) const MISTRAL_SMALL_4: Preset = Preset {
    name: "mistral-small-4",
    base_name: "Mistral-Small-4-119B-2603",
    size_label: "128x4.1B",
    family: &family_latent::MISTRAL4,
    num_hidden_layers: 36,
    hidden_size: 4096,
    num_attention_heads: 32,
    num_experts: 128,
    num_experts_per_tok: 4,
    moe_intermediate_size: 2048,
    intermediate_size: 12_288,
    first_k_dense_replace: 0,
    routed_scaling_factor: 1.0,
    vocab_size: 131_072,
    max_position_embeddings: 1_048_576,
    ..DEEPSEEK_V3
};

pub(super) const SMALLTHINKER_21B: Preset = Preset {
    name: "smallthinker-21b-a3b",
    base_name: "SmallThinker-21BA3B-Instruct",
    size_label: "64x1.0B",
    family: &family_windows::SMALLTHINKER,
    num_hidden_layers: 52,
    hidden_size: 2560,
    num_attention_heads: 28,
    num_experts: 64,
    num_experts_per_tok: 6,
    intermediate_size: 768,
    max_position_embeddings: 16_384,
    rope_theta: 1.5e6,
    ..QWEN3_30B
};

pub(super) const PHI_3_5_MOE: Preset = Preset {
    name: "phi-3.5-moe",
    base_name: "Phi-3.5-MoE-instruct",
    size_label: "16x4.1B",
    family: &family::PHIMOE,
    num_experts: 16,
    moe_intermediate_size: 6400,
    intermediate_size: 6400,
    vocab_size: 32_064,
    max_position_embeddings: 131_072,
    rope_theta: 1e4,
    ..MIXTRAL_8X7B
};

pub(super) const DBRX: Preset = Preset {
    name: "dbrx",
    base_name: "dbrx-instruct",
    size_label: "16x12B",
    family: &family::DBRX,
    num_hidden_layers: 40,
    hidden_size: 6144,
    num_attention_heads: 48,
    num_experts: 16,
    num_experts_per_tok: 4,
    moe_intermediate_size: 10_752,
    intermediate_size: 10_752,
    vocab_size: 100_352,
    rope_theta: 5e5,
    ..MIXTRAL_8X7B
};

pub(super) const STEP_3_5_FLASH: Preset = Preset {
    name: "step-3.5-flash",
    base_name: "Step-3.5-Flash",
    size_label: "288x7.4B",
    family: &family_windows::STEP35,
    num_hidden_layers: 45,
    hidden_size: 4096,
    num_attention_heads: 64,
    num_key_value_heads: 8,
    num_experts: 288,
    moe_intermediate_size: 1280,
    intermediate_size: 11_264,
    shared_expert_intermediate_size: 1280,
    first_k_dense_replace: 3,
    routed_scaling_factor: 3.0,
    vocab_size: 128_896,
    rope_theta: 5e6,
    rms_norm_eps: 1e-5,
    ..QWEN3_30B
};

pub(super) const TRINITY_MINI: Preset = Preset {
    name: "trinity-mini",
    base_name: "Trinity-Mini",
    size_label: "128x2.6B",
    family: &family_windows::AFMOE,
    num_hidden_layers: 32,
    moe_intermediate_size: 1024,
    n_shared_experts: 1,
    first_k_dense_replace: 2,
    routed_scaling_factor: 2.826,
    vocab_size: 200_192,
    max_position_embeddings: 131_072,
    rope_theta: 1e4,
    rms_norm_eps: 1e-5,
    ..QWEN3_30B
};

pub(super) const LAGUNA_XS: Preset = Preset {
    name: "laguna-xs",
    base_name: "Laguna-XS-2.1",
    size_label: "256x2.0B",
    family: &family_windows::LAGUNA,
    num_hidden_layers: 40,
    num_attention_heads: 48,
    num_key_value_heads: 8,
    num_experts: 256,
    moe_intermediate_size: 512,
    intermediate_size: 8192,
    shared_expert_intermediate_size: 512,
    first_k_dense_replace: 1,
    routed_scaling_factor: 2.5,
    vocab_size: 100_352,
    rope_theta: 5e5,
    ..QWEN3_30B
};

pub(super) const NORTH_MINI_CODE: Preset = Preset {
    name: "north-mini-code",
    base_name: "North-Mini-Code-1.0",
    size_label: "128x1.9B",
    family: &family_windows::COHERE2MOE,
    num_hidden_layers: 49,
    intermediate_size: 3072,
    first_k_dense_replace: 1,
    tie_word_embeddings: true,
    vocab_size: 262_144,
    max_position_embeddings: 500_000,
    rope_theta: 5e4,
    rms_norm_eps: 1e-5,
    ..QWEN3_30B
};

pub(super) const LLAMA_4_SCOUT: Preset = Preset {
    name: "llama-4-scout",
    base_name: "Llama-4-Scout-17B-16E-Instruct",
    size_label: "17B-16E",
    family: &family_windows::LLAMA4_SCOUT,
    hidden_size: 5120,
    num_attention_heads: 40,
    num_key_value_heads: 8,
    num_experts: 16,
    num_experts_per_tok: 1,
    moe_intermediate_size: 8192,
    intermediate_size: 16_384,
    vocab_size: 202_048,
    max_position_embeddings: 10_485_760,
    rope_theta: 5e5,
    rms_norm_eps: 1e-5,
    ..QWEN3_30B
};

pub(super) const LLAMA_4_MAVERICK: Preset = Preset {
    name: "llama-4-maverick",
    base_name: "Llama-4-Maverick-17B-128E-Instruct",
    size_label: "17B-128E",
    family: &family_windows::LLAMA4_MAVERICK,
    num_experts: 128,
    max_position_embeddings: 1_048_576,
    ..LLAMA_4_SCOUT
};

/// Heads of layers that see everything; those with a window are half as wide.
pub(super) const GEMMA_4_26B: Preset = Preset {
    name: "gemma-4-26b-a4b",
    base_name: "Gemma-4-26B-A4B-It",
    size_label: "128x2.6B",
    family: &family_windows::GEMMA4,
    num_hidden_layers: 30,
    hidden_size: 2816,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 512,
    moe_intermediate_size: 704,
    intermediate_size: 2112,
    tie_word_embeddings: true,
    vocab_size: 262_144,
    rope_theta: 1e6,
    ..QWEN3_30B
};
