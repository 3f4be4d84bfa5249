//! Files of models whose layers differ in what they see: windows, chunks, and layers that see everything.

use super::family::{
    Family, Keys, SIGMOID, Tensors, attention, bools, count, counts, deepseek_like, deepseek_like_ffn, dense,
    expert_width, experts, nothing, qk_norm_of_a_head, selection_bias, shared_expert, text,
};
use super::preset::Preset;
use crate::gguf::MetaValue;
use crate::gguf::keys::{arch, layer as name, tensor};

/// Of so many layers one sees everything.
const PERIOD: usize = 4;

/// Whether layer i has a window where the first of each period sees everything.
fn windowed(i: usize) -> bool {
    !i.is_multiple_of(PERIOD)
}

/// q, k, v and o of so many heads, and the norm before them.
fn attention_of(p: &Preset, heads: usize, kv_heads: usize, head_dim: usize) -> Tensors {
    let d = p.hidden_size;
    vec![
        (name::ATTN_NORM, vec![d]),
        (name::ATTN_Q, vec![heads * head_dim, d]),
        (name::ATTN_K, vec![kv_heads * head_dim, d]),
        (name::ATTN_V, vec![kv_heads * head_dim, d]),
        (name::ATTN_OUTPUT, vec![d, heads * head_dim]),
    ]
}

fn ffn_norm(p: &Preset) -> Tensors {
    vec![(name::FFN_NORM, vec![p.hidden_size])]
}

fn dense_or_experts(p: &Preset, i: usize) -> Tensors {
    match i < p.first_k_dense_replace {
        true => dense(p),
        false => experts(p),
    }
}

/// The router reads the residual stream: nothing of that is in the tensors.
pub(super) static SMALLTHINKER: Family = Family {
    architecture: "smallthinker",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.push((arch::EXPERT_GATING_FUNC, MetaValue::U32(SIGMOID)));
        keys.push((arch::SLIDING_WINDOW, count(4096)));
        keys
    },
    layer: |p, _| [attention(p, name::FFN_NORM), experts(p)].concat(),
    model: nothing,
};

/// Trinity: an output gate, norms behind each part.
pub(super) static AFMOE: Family = Family {
    architecture: "afmoe",
    keys: |p, _| {
        let mut keys = deepseek_like(p, Some(SIGMOID));
        keys.push((arch::SLIDING_WINDOW, count(2048)));
        keys.push((arch::ROPE_DIMENSION_COUNT, count(p.head_dim)));
        keys
    },
    layer: |p, i| {
        let d = p.hidden_size;
        let more = vec![
            (name::ATTN_GATE, vec![p.q_dim(), d]),
            (name::POST_ATTENTION_NORM, vec![d]),
            (name::POST_FFW_NORM, vec![d]),
        ];
        [attention(p, name::FFN_NORM), qk_norm_of_a_head(p), more, deepseek_like_ffn(p, i)].concat()
    },
    model: nothing,
};

/// Step 3.5: more heads in layers with a window.
const STEP35_WINDOW_HEADS: usize = 96;

fn step35_heads(p: &Preset, i: usize) -> usize {
    if windowed(i) { STEP35_WINDOW_HEADS } else { p.num_attention_heads }
}

/// Keys of heads by layer, a shared expert whose width is stated, and a sigmoid router with factors.
fn keys_by_layer(p: &Preset, layers: usize, heads: fn(&Preset, usize) -> usize) -> Keys {
    let mut keys = expert_width(p);
    keys.extend([
        (arch::HEAD_COUNT, counts((0..layers).map(|i| heads(p, i)))),
        (arch::SLIDING_WINDOW, count(512)),
        (arch::ROPE_FREQ_BASE_SWA, MetaValue::F32(1e4)),
        (arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(p.shared_expert_intermediate_size)),
        (arch::EXPERT_SHARED_COUNT, count(1)),
        (arch::LEADING_DENSE_BLOCK_COUNT, count(p.first_k_dense_replace)),
        (arch::EXPERT_GATING_FUNC, MetaValue::U32(SIGMOID)),
        (arch::EXPERT_WEIGHTS_NORM, MetaValue::Bool(true)),
        (arch::EXPERT_WEIGHTS_SCALE, MetaValue::F32(p.routed_scaling_factor)),
    ]);
    keys
}

/// Attention of so many heads with per-head norms and a gate a head; dense layers first, then experts and a shared one.
fn layer_by_heads(p: &Preset, i: usize, heads: usize) -> Tensors {
    let gate = vec![(name::ATTN_GATE, vec![heads, p.hidden_size])];
    let ffn = match i < p.first_k_dense_replace {
        true => dense(p),
        false => {
            [experts(p), selection_bias(p), shared_expert(p, p.shared_expert_intermediate_size)].concat()
        }
    };
    let attention = attention_of(p, heads, p.num_key_value_heads, p.head_dim);
    [attention, qk_norm_of_a_head(p), gate, ffn_norm(p), ffn].concat()
}

pub(super) static STEP35: Family = Family {
    architecture: "step35",
    keys: |p, layers| {
        let limits = |from: usize, limit: f32| {
            let limits = (0..layers).map(|i| if i >= from { limit } else { 0.0 });
            MetaValue::Array(crate::gguf::MetaArray::F32(limits.collect()))
        };
        let mut keys = keys_by_layer(p, layers, step35_heads);
        keys.extend([
            (arch::HEAD_COUNT_KV, counts((0..layers).map(|_| p.num_key_value_heads))),
            (arch::SLIDING_WINDOW_PATTERN, bools((0..layers).map(windowed))),
            (arch::MOE_EVERY_N_LAYERS, count(1)),
            (arch::SWIGLU_CLAMP_EXP, limits(43, 7.0)),
            (arch::SWIGLU_CLAMP_SHEXP, limits(44, 16.0)),
        ]);
        keys
    },
    layer: |p, i| layer_by_heads(p, i, step35_heads(p, i)),
    model: |p| vec![(tensor::ROPE_FREQS, vec![p.head_dim / 2])],
};

fn laguna_heads(p: &Preset, i: usize) -> usize {
    if windowed(i) { p.num_attention_heads * 4 / 3 } else { p.num_attention_heads }
}

pub(super) static LAGUNA: Family = Family {
    architecture: "laguna",
    keys: |p, layers| {
        let mut keys = keys_by_layer(p, layers, laguna_heads);
        keys.extend([
            (arch::ROPE_DIMENSION_COUNT, count(p.head_dim / 2)),
            (arch::ROPE_DIMENSION_COUNT_SWA, count(p.head_dim)),
            (arch::ROPE_SCALING_TYPE, text("yarn")),
            (arch::ROPE_SCALING_FACTOR, MetaValue::F32(32.0)),
            (arch::ROPE_SCALING_ORIG_CTX, count(8192)),
            (arch::ROPE_SCALING_YARN_BETA_FAST, MetaValue::F32(64.0)),
            (arch::ROPE_SCALING_YARN_BETA_SLOW, MetaValue::F32(1.0)),
        ]);
        keys
    },
    layer: |p, i| layer_by_heads(p, i, laguna_heads(p, i)),
    model: nothing,
};

/// One norm before both parts, LayerNorm.
pub(super) static COHERE2MOE: Family = Family {
    architecture: "cohere2moe",
    keys: |p, layers| {
        let mut keys = expert_width(p);
        keys.extend([
            (arch::LAYER_NORM_EPS, MetaValue::F32(p.rms_norm_eps)),
            (arch::SLIDING_WINDOW, count(4096)),
            (arch::SLIDING_WINDOW_PATTERN, bools((0..layers).map(windowed))),
            (arch::LOGIT_SCALE, MetaValue::F32(0.0625)),
            (arch::LEADING_DENSE_BLOCK_COUNT, count(p.first_k_dense_replace)),
            (arch::EXPERT_GATING_FUNC, MetaValue::U32(SIGMOID)),
            (arch::EXPERT_WEIGHTS_NORM, MetaValue::Bool(false)),
            (arch::ROPE_DIMENSION_COUNT, count(p.head_dim)),
        ]);
        keys
    },
    layer: |p, i| {
        let attention = attention_of(p, p.num_attention_heads, p.num_key_value_heads, p.head_dim);
        [attention, dense_or_experts(p, i)].concat()
    },
    model: nothing,
};

fn llama4_layer(p: &Preset, is_sparse: bool) -> Tensors {
    let ffn = match is_sparse {
        true => [experts(p), shared_expert(p, p.moe_intermediate_size)].concat(),
        false => dense(p),
    };
    [attention(p, name::FFN_NORM), ffn].concat()
}

fn llama4_keys(p: &Preset, step: usize) -> Keys {
    let mut keys = expert_width(p);
    keys.extend([
        (arch::INTERLEAVE_MOE_LAYER_STEP, count(step)),
        (arch::EXPERT_GATING_FUNC, MetaValue::U32(SIGMOID)),
        (arch::ROPE_DIMENSION_COUNT, count(p.head_dim)),
    ]);
    keys
}

pub(super) static LLAMA4_SCOUT: Family = Family {
    architecture: "llama4",
    keys: |p, _| llama4_keys(p, 1),
    layer: |p, _| llama4_layer(p, true),
    model: |p| vec![(tensor::ROPE_FREQS, vec![p.head_dim / 2])],
};

/// Every second layer has experts.
pub(super) static LLAMA4_MAVERICK: Family = Family {
    architecture: "llama4",
    keys: |p, _| llama4_keys(p, 2),
    layer: |p, i| llama4_layer(p, i % 2 == 1),
    model: nothing,
};

/// Gemma 4's every sixth layer sees everything: its heads are as wide as the preset says, those of the others half as wide,
/// and its keys are its values.
const GEMMA4_PERIOD: usize = 6;
const GEMMA4_FULL_KV_HEADS: usize = 2;

fn gemma4_windowed(i: usize) -> bool {
    !(i + 1).is_multiple_of(GEMMA4_PERIOD)
}

pub(super) static GEMMA4: Family = Family {
    architecture: "gemma4",
    keys: |p, layers| {
        let kv_heads = |i| if gemma4_windowed(i) { p.num_key_value_heads } else { GEMMA4_FULL_KV_HEADS };
        let mut keys = expert_width(p);
        keys.extend([
            (arch::HEAD_COUNT_KV, counts((0..layers).map(kv_heads))),
            (arch::KEY_LENGTH_SWA, count(p.head_dim / 2)),
            (arch::VALUE_LENGTH_SWA, count(p.head_dim / 2)),
            (arch::ROPE_DIMENSION_COUNT, count(p.head_dim)),
            (arch::ROPE_DIMENSION_COUNT_SWA, count(p.head_dim / 2)),
            (arch::ROPE_FREQ_BASE_SWA, MetaValue::F32(1e4)),
            (arch::SLIDING_WINDOW, count(1024)),
            (arch::SLIDING_WINDOW_PATTERN, bools((0..layers).map(gemma4_windowed))),
            (arch::SHARED_KV_LAYERS, count(0)),
            (arch::EMBEDDING_LENGTH_PER_LAYER_INPUT, count(0)),
            (arch::FINAL_LOGIT_SOFTCAPPING, MetaValue::F32(30.0)),
        ]);
        keys
    },
    layer: |p, i| {
        let (d, e, f) = (p.hidden_size, p.num_experts, p.moe_intermediate_size);
        let (kv_heads, head_dim) = match gemma4_windowed(i) {
            true => (p.num_key_value_heads, p.head_dim / 2),
            false => (GEMMA4_FULL_KV_HEADS, p.head_dim),
        };
        let mut attention = attention_of(p, p.num_attention_heads, kv_heads, head_dim);
        attention.retain(|(tensor, _)| gemma4_windowed(i) || *tensor != name::ATTN_V);
        let norms = vec![
            (name::ATTN_Q_NORM, vec![head_dim]),
            (name::ATTN_K_NORM, vec![head_dim]),
            (name::POST_ATTENTION_NORM, vec![d]),
            (name::FFN_NORM, vec![d]),
            (name::POST_FFW_NORM, vec![d]),
            (name::PRE_FFW_NORM_2, vec![d]),
            (name::POST_FFW_NORM_1, vec![d]),
            (name::POST_FFW_NORM_2, vec![d]),
            (name::LAYER_OUTPUT_SCALE, vec![1]),
        ];
        let experts = vec![
            (name::FFN_GATE_INP, vec![e, d]),
            (name::FFN_GATE_INP_SCALE, vec![d]),
            (name::FFN_GATE_UP_EXPS, vec![e, 2 * f, d]),
            (name::FFN_DOWN_EXPS, vec![e, d, f]),
            (name::FFN_DOWN_EXPS_SCALE, vec![e]),
        ];
        [attention, norms, dense(p), experts].concat()
    },
    model: |p| vec![(tensor::ROPE_FREQS, vec![p.head_dim / 2])],
};
