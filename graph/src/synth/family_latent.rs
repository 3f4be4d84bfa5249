//! Files of models with latent attention: DeepSeek's and what took it over.

use super::family::{Family, Keys, SIGMOID, Tensors, count, deepseek_like, deepseek_like_ffn, nothing, text};
use super::preset::Preset;
use crate::gguf::MetaValue;
use crate::gguf::keys::{arch, layer as name};

/// What latent attention is made of.
struct Latent {
    /// `None`: queries come from the hidden state at once.
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
}

const DEEPSEEK_V3_ATTENTION: Latent = Latent {
    q_lora_rank: Some(1536),
    kv_lora_rank: 512,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
};

const V2_LITE_ATTENTION: Latent = Latent { q_lora_rank: None, ..DEEPSEEK_V3_ATTENTION };

const GLM_FLASH_ATTENTION: Latent =
    Latent { q_lora_rank: Some(768), qk_nope_head_dim: 192, v_head_dim: 256, ..DEEPSEEK_V3_ATTENTION };

const SMALL_4_ATTENTION: Latent = Latent {
    q_lora_rank: Some(1024),
    kv_lora_rank: 256,
    qk_nope_head_dim: 64,
    qk_rope_head_dim: 64,
    v_head_dim: 128,
};

/// YaRN with mscale = mscale_all_dim, whose tenth the file states.
struct Yarn {
    factor: f32,
    /// Positions before it.
    original: usize,
    beta_fast: f32,
    log_multiplier: f32,
}

fn keys(p: &Preset, latent: &Latent, yarn: Option<&Yarn>, gate: Option<u32>) -> Keys {
    let mut keys = deepseek_like(p, gate);
    keys.extend(latent.q_lora_rank.map(|rank| (arch::Q_LORA_RANK, count(rank))));
    keys.extend([
        (arch::HEAD_COUNT_KV, count(1)),
        (arch::KV_LORA_RANK, count(latent.kv_lora_rank)),
        (arch::KEY_LENGTH, count(latent.kv_lora_rank + latent.qk_rope_head_dim)),
        (arch::VALUE_LENGTH, count(latent.kv_lora_rank)),
        (arch::KEY_LENGTH_MLA, count(latent.qk_nope_head_dim + latent.qk_rope_head_dim)),
        (arch::VALUE_LENGTH_MLA, count(latent.v_head_dim)),
        (arch::ROPE_DIMENSION_COUNT, count(latent.qk_rope_head_dim)),
    ]);
    if let Some(yarn) = yarn {
        keys.extend([
            (arch::ROPE_SCALING_TYPE, text("yarn")),
            (arch::ROPE_SCALING_FACTOR, MetaValue::F32(yarn.factor)),
            (arch::ROPE_SCALING_ORIG_CTX, count(yarn.original)),
            (arch::ROPE_SCALING_YARN_BETA_FAST, MetaValue::F32(yarn.beta_fast)),
            (arch::ROPE_SCALING_YARN_LOG_MULTIPLIER, MetaValue::F32(yarn.log_multiplier)),
        ]);
    }
    keys
}

fn attention(p: &Preset, latent: &Latent) -> Tensors {
    let (d, h) = (p.hidden_size, p.num_attention_heads);
    let q_dim = h * (latent.qk_nope_head_dim + latent.qk_rope_head_dim);
    let mut tensors = vec![
        (name::ATTN_NORM, vec![d]),
        (name::ATTN_KV_A_MQA, vec![latent.kv_lora_rank + latent.qk_rope_head_dim, d]),
        (name::ATTN_KV_A_NORM, vec![latent.kv_lora_rank]),
        (name::ATTN_K_B, vec![h, latent.kv_lora_rank, latent.qk_nope_head_dim]),
        (name::ATTN_V_B, vec![h, latent.v_head_dim, latent.kv_lora_rank]),
        (name::ATTN_OUTPUT, vec![d, h * latent.v_head_dim]),
        (name::FFN_NORM, vec![d]),
    ];
    match latent.q_lora_rank {
        Some(rank) => tensors.extend([
            (name::ATTN_Q_A, vec![rank, d]),
            (name::ATTN_Q_A_NORM, vec![rank]),
            (name::ATTN_Q_B, vec![q_dim, rank]),
        ]),
        None => tensors.push((name::ATTN_Q, vec![q_dim, d])),
    }
    tensors
}

fn layer(p: &Preset, i: usize, latent: &Latent, selection_bias: bool) -> Tensors {
    let mut ffn = deepseek_like_ffn(p, i);
    ffn.retain(|(tensor, _)| selection_bias || *tensor != name::EXP_PROBS_B);
    [attention(p, latent), ffn].concat()
}

pub(super) static DEEPSEEK_V2_LITE: Family = Family {
    architecture: "deepseek2",
    keys: |p, _| {
        let yarn = Yarn { factor: 40.0, original: 4096, beta_fast: 32.0, log_multiplier: 0.0707 };
        let mut keys = keys(p, &V2_LITE_ATTENTION, Some(&yarn), None);
        // Weights stay as the softmax gave them.
        keys.retain(|(key, _)| *key != arch::EXPERT_WEIGHTS_NORM);
        keys
    },
    layer: |p, i| layer(p, i, &V2_LITE_ATTENTION, false),
    model: nothing,
};

pub(super) static DEEPSEEK_V3: Family = Family {
    architecture: "deepseek2",
    keys: |p, _| {
        let yarn = Yarn { factor: 40.0, original: 4096, beta_fast: 32.0, log_multiplier: 0.1 };
        let mut keys = keys(p, &DEEPSEEK_V3_ATTENTION, Some(&yarn), Some(SIGMOID));
        keys.push((arch::EXPERT_GROUP_COUNT, count(8)));
        keys.push((arch::EXPERT_GROUP_USED_COUNT, count(4)));
        keys
    },
    layer: |p, i| layer(p, i, &DEEPSEEK_V3_ATTENTION, true),
    model: nothing,
};

/// Of an indexer: its heads, their size, and how many positions it chooses.
type Indexer = [usize; 3];

const V3_2_INDEXER: Indexer = [64, 128, 2048];
const GLM_5_INDEXER: Indexer = [32, 128, 2048];

const GLM_5_ATTENTION: Latent =
    Latent { q_lora_rank: Some(2048), qk_nope_head_dim: 192, v_head_dim: 256, ..DEEPSEEK_V3_ATTENTION };

fn indexer_keys(indexer: Indexer) -> Keys {
    let [heads, head_dim, top_k] = indexer.map(count);
    vec![
        (arch::INDEXER_HEAD_COUNT, heads),
        (arch::INDEXER_KEY_LENGTH, head_dim),
        (arch::INDEXER_TOP_K, top_k),
    ]
}

fn indexer(p: &Preset, latent: &Latent, [heads, head_dim, _]: Indexer) -> Tensors {
    let (d, rank) = (p.hidden_size, latent.q_lora_rank.unwrap_or(p.hidden_size));
    vec![
        (name::INDEXER_ATTN_Q_B, vec![heads * head_dim, rank]),
        (name::INDEXER_ATTN_K, vec![head_dim, d]),
        (name::INDEXER_K_NORM, vec![head_dim]),
        (name::INDEXER_K_NORM_BIAS, vec![head_dim]),
        (name::INDEXER_PROJ, vec![heads, d]),
    ]
}

pub(super) static DEEPSEEK_V3_2: Family = Family {
    architecture: "deepseek32",
    keys: |p, layers| [(DEEPSEEK_V3.keys)(p, layers), indexer_keys(V3_2_INDEXER)].concat(),
    layer: |p, i| [(DEEPSEEK_V3.layer)(p, i), indexer(p, &DEEPSEEK_V3_ATTENTION, V3_2_INDEXER)].concat(),
    model: nothing,
};

pub(super) static GLM_5: Family = Family {
    architecture: "glm-dsa",
    keys: |p, _| [keys(p, &GLM_5_ATTENTION, None, Some(SIGMOID)), indexer_keys(GLM_5_INDEXER)].concat(),
    layer: |p, i| [layer(p, i, &GLM_5_ATTENTION, true), indexer(p, &GLM_5_ATTENTION, GLM_5_INDEXER)].concat(),
    model: nothing,
};

pub(super) static KIMI_K2: Family = Family {
    architecture: "deepseek2",
    keys: |p, _| {
        let yarn = Yarn { factor: 32.0, original: 4096, beta_fast: 1.0, log_multiplier: 0.1 };
        keys(p, &DEEPSEEK_V3_ATTENTION, Some(&yarn), Some(SIGMOID))
    },
    layer: |p, i| layer(p, i, &DEEPSEEK_V3_ATTENTION, true),
    model: nothing,
};

pub(super) static GLM_4_7_FLASH: Family = Family {
    architecture: "deepseek2",
    keys: |p, _| keys(p, &GLM_FLASH_ATTENTION, None, Some(SIGMOID)),
    layer: |p, i| layer(p, i, &GLM_FLASH_ATTENTION, true),
    model: nothing,
};

/// Softmax router, gate and up of the experts in one tensor, queries that grow with their position.
pub(super) static MISTRAL4: Family = Family {
    architecture: "mistral4",
    keys: |p, _| {
        let yarn = Yarn { factor: 128.0, original: 8192, beta_fast: 32.0, log_multiplier: 0.1 };
        let mut keys = keys(p, &SMALL_4_ATTENTION, Some(&yarn), None);
        keys.push((arch::TEMPERATURE_SCALE, MetaValue::F32(0.1)));
        keys.push((arch::TEMPERATURE_LENGTH, count(8192)));
        keys
    },
    layer: |p, i| {
        let (e, f, d) = (p.num_experts, p.moe_intermediate_size, p.hidden_size);
        let mut layer = layer(p, i, &SMALL_4_ATTENTION, false);
        layer.retain(|(tensor, _)| ![name::FFN_GATE_EXPS, name::FFN_UP_EXPS].contains(tensor));
        layer.push((name::FFN_GATE_UP_EXPS, vec![e, 2 * f, d]));
        layer
    },
    model: nothing,
};
