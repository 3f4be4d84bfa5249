//! What the files of an architecture have: keys, and the tensors of a layer with their shapes.

use super::preset::Preset;
use crate::gguf::keys::{arch, layer as name, tensor};
use crate::gguf::{MetaArray, MetaValue};

/// Keys after the architecture's name, and what they say.
pub(super) type Keys = Vec<(&'static str, MetaValue)>;
/// Names behind `blk.<i>.` (or of the whole model), and shapes, outermost axis first.
pub(super) type Tensors = Vec<(&'static str, Vec<usize>)>;

/// An architecture's files.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// Keys besides [`common_keys`], for so many layers.
    pub(super) keys: fn(&Preset, usize) -> Keys,
    /// Tensors of layer i.
    pub(super) layer: fn(&Preset, usize) -> Tensors,
    /// Tensors of the whole model besides embedding, final norm and lm_head.
    pub(super) model: fn(&Preset) -> Tensors,
}

pub(super) fn count(n: usize) -> MetaValue {
    MetaValue::U32(n as u32) // dimensions are far below 2^32
}

/// One a layer.
pub(super) fn counts(of: impl Iterator<Item = usize>) -> MetaValue {
    MetaValue::Array(MetaArray::U32(of.map(|n| n as u32).collect()))
}

/// One a layer.
pub(super) fn bools(of: impl Iterator<Item = bool>) -> MetaValue {
    MetaValue::Array(MetaArray::Bool(of.collect()))
}

pub(super) fn text(s: &str) -> MetaValue {
    MetaValue::String(s.to_owned())
}

pub(super) const fn nothing(_: &Preset) -> Tensors {
    Vec::new()
}

/// What every file says.
pub(super) fn common_keys(p: &Preset, layers: usize) -> Keys {
    vec![
        (arch::BLOCK_COUNT, count(layers)),
        (arch::CONTEXT_LENGTH, count(p.max_position_embeddings)),
        (arch::EMBEDDING_LENGTH, count(p.hidden_size)),
        (arch::FEED_FORWARD_LENGTH, count(p.intermediate_size)),
        (arch::HEAD_COUNT, count(p.num_attention_heads)),
        (arch::HEAD_COUNT_KV, count(p.num_key_value_heads)),
        (arch::ROPE_FREQ_BASE, MetaValue::F32(p.rope_theta)),
        (arch::RMS_EPS, MetaValue::F32(p.rms_norm_eps)),
        (arch::KEY_LENGTH, count(p.head_dim)),
        (arch::VALUE_LENGTH, count(p.head_dim)),
        (arch::EXPERT_COUNT, count(p.num_experts)),
        (arch::EXPERT_USED_COUNT, count(p.num_experts_per_tok)),
    ]
}

pub(super) fn expert_width(p: &Preset) -> Keys {
    vec![(arch::EXPERT_FEED_FORWARD_LENGTH, count(p.moe_intermediate_size))]
}

/// Keys of a sigmoid router with shared experts behind dense first layers; the gate's function as `gate` says.
pub(super) fn deepseek_like(p: &Preset, gate: Option<u32>) -> Keys {
    let mut keys = expert_width(p);
    keys.extend([
        (arch::EXPERT_SHARED_COUNT, count(p.n_shared_experts)),
        (arch::LEADING_DENSE_BLOCK_COUNT, count(p.first_k_dense_replace)),
        (arch::EXPERT_WEIGHTS_NORM, MetaValue::Bool(true)),
        (arch::EXPERT_WEIGHTS_SCALE, MetaValue::F32(p.routed_scaling_factor)),
    ]);
    keys.extend(gate.map(|gate| (arch::EXPERT_GATING_FUNC, MetaValue::U32(gate))));
    keys
}

pub(super) const SIGMOID: u32 = 2;

/// Norms before both parts, the second one under `ffn_norm`; q, k, v and o.
pub(super) fn attention(p: &Preset, ffn_norm: &'static str) -> Tensors {
    let (d, q, kv) = (p.hidden_size, p.q_dim(), p.kv_dim());
    vec![
        (name::ATTN_NORM, vec![d]),
        (name::ATTN_Q, vec![q, d]),
        (name::ATTN_K, vec![kv, d]),
        (name::ATTN_V, vec![kv, d]),
        (name::ATTN_OUTPUT, vec![d, q]),
        (ffn_norm, vec![d]),
    ]
}

fn qkv_bias(p: &Preset) -> Tensors {
    let (q, kv) = (p.q_dim(), p.kv_dim());
    vec![(name::ATTN_Q_BIAS, vec![q]), (name::ATTN_K_BIAS, vec![kv]), (name::ATTN_V_BIAS, vec![kv])]
}

pub(super) fn qk_norm_of_a_head(p: &Preset) -> Tensors {
    vec![(name::ATTN_Q_NORM, vec![p.head_dim]), (name::ATTN_K_NORM, vec![p.head_dim])]
}

fn qk_norm_of_a_row(p: &Preset) -> Tensors {
    vec![(name::ATTN_Q_NORM, vec![p.q_dim()]), (name::ATTN_K_NORM, vec![p.kv_dim()])]
}

pub(super) fn experts(p: &Preset) -> Tensors {
    let (e, f, d) = (p.num_experts, p.moe_intermediate_size, p.hidden_size);
    vec![
        (name::FFN_GATE_INP, vec![e, d]),
        (name::FFN_GATE_EXPS, vec![e, f, d]),
        (name::FFN_UP_EXPS, vec![e, f, d]),
        (name::FFN_DOWN_EXPS, vec![e, d, f]),
    ]
}

pub(super) fn selection_bias(p: &Preset) -> Tensors {
    vec![(name::EXP_PROBS_B, vec![p.num_experts])]
}

pub(super) fn shared_expert(p: &Preset, width: usize) -> Tensors {
    let d = p.hidden_size;
    vec![
        (name::FFN_GATE_SHEXP, vec![width, d]),
        (name::FFN_UP_SHEXP, vec![width, d]),
        (name::FFN_DOWN_SHEXP, vec![d, width]),
    ]
}

pub(super) fn dense(p: &Preset) -> Tensors {
    let (d, f) = (p.hidden_size, p.intermediate_size);
    vec![(name::FFN_GATE, vec![f, d]), (name::FFN_UP, vec![f, d]), (name::FFN_DOWN, vec![d, f])]
}

/// Dense first layers, then experts with a selection bias and shared experts.
pub(super) fn deepseek_like_ffn(p: &Preset, layer: usize) -> Tensors {
    if layer < p.first_k_dense_replace {
        return dense(p);
    }
    let shared = shared_expert(p, p.n_shared_experts * p.moe_intermediate_size);
    [experts(p), selection_bias(p), shared].concat()
}

pub(super) static QWEN3MOE: Family = Family {
    architecture: "qwen3moe",
    keys: |p, _| expert_width(p),
    layer: |p, _| [attention(p, name::FFN_NORM), qk_norm_of_a_head(p), experts(p)].concat(),
    model: nothing,
};

pub(super) static QWEN3VLMOE: Family = Family {
    architecture: "qwen3vlmoe",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.push((arch::ROPE_DIMENSION_SECTIONS, sections([24, 20, 20, 0])));
        keys.push((arch::DEEPSTACK_LAYERS, count(3)));
        keys
    },
    layer: QWEN3MOE.layer,
    model: nothing,
};

/// Experts of a run that share a small one.
const GROVE_RUN: usize = 2;

/// Qwen3-MoE with small experts, as wide as a head.
pub(super) static GROVEMOE: Family = Family {
    architecture: "grovemoe",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.extend([
            (arch::EXPERT_CHUNK_FEED_FORWARD_LENGTH, count(p.head_dim)),
            (arch::EXPERTS_PER_GROUP, count(GROVE_RUN)),
            (arch::EXPERT_GROUP_SCALE, MetaValue::F32(0.05)),
        ]);
        keys
    },
    layer: |p, i| {
        let (runs, f, d) = (p.num_experts / GROVE_RUN, p.head_dim, p.hidden_size);
        let small = vec![
            (name::FFN_GATE_CHEXPS, vec![runs, f, d]),
            (name::FFN_UP_CHEXPS, vec![runs, f, d]),
            (name::FFN_DOWN_CHEXPS, vec![runs, d, f]),
        ];
        [(QWEN3MOE.layer)(p, i), small].concat()
    },
    model: nothing,
};

pub(super) static QWEN2MOE: Family = Family {
    architecture: "qwen2moe",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.push((arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(p.shared_expert_intermediate_size)));
        keys
    },
    layer: |p, _| {
        let gate = vec![(name::FFN_GATE_INP_SHEXP, vec![1, p.hidden_size])];
        let shared = shared_expert(p, p.shared_expert_intermediate_size);
        [attention(p, name::FFN_NORM), qkv_bias(p), experts(p), gate, shared].concat()
    },
    model: nothing,
};

/// Mixtral: the experts' width is the dense one's key.
pub(super) static LLAMA: Family = Family {
    architecture: "llama",
    keys: |p, _| vec![(arch::ROPE_DIMENSION_COUNT, count(p.head_dim))],
    layer: |p, _| [attention(p, name::FFN_NORM), experts(p)].concat(),
    model: nothing,
};

pub(super) static OLMOE: Family = Family {
    architecture: "olmoe",
    keys: |_, _| Vec::new(),
    layer: |p, _| [attention(p, name::FFN_NORM), qk_norm_of_a_row(p), experts(p)].concat(),
    model: nothing,
};

pub(super) static MINIMAX_M2: Family = Family {
    architecture: "minimax-m2",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.push((arch::EXPERT_GATING_FUNC, MetaValue::U32(SIGMOID)));
        keys.push((arch::ROPE_DIMENSION_COUNT, count(p.head_dim / 2)));
        keys
    },
    layer: |p, _| [attention(p, name::FFN_NORM), qk_norm_of_a_row(p), experts(p), selection_bias(p)].concat(),
    model: nothing,
};

fn glm4moe_keys(p: &Preset, _: usize) -> Keys {
    let mut keys = deepseek_like(p, Some(SIGMOID));
    keys.push((arch::ROPE_DIMENSION_COUNT, count(p.head_dim / 2)));
    keys
}

/// GLM-4.5-Air: without the Q/K norm.
pub(super) static GLM4MOE_AIR: Family = Family {
    architecture: "glm4moe",
    keys: glm4moe_keys,
    layer: |p, i| [attention(p, name::POST_ATTENTION_NORM), qkv_bias(p), deepseek_like_ffn(p, i)].concat(),
    model: nothing,
};

pub(super) static GLM4MOE: Family = Family {
    architecture: "glm4moe",
    keys: glm4moe_keys,
    layer: |p, i| {
        let attention = attention(p, name::POST_ATTENTION_NORM);
        [attention, qkv_bias(p), qk_norm_of_a_head(p), deepseek_like_ffn(p, i)].concat()
    },
    model: nothing,
};

pub(super) static DOTS1: Family = Family {
    architecture: "dots1",
    keys: |p, _| deepseek_like(p, Some(SIGMOID)),
    layer: |p, i| [attention(p, name::FFN_NORM), qk_norm_of_a_head(p), deepseek_like_ffn(p, i)].concat(),
    model: nothing,
};

/// The shared experts' width is one expert's times their number.
pub(super) static ERNIE4_5_MOE: Family = Family {
    architecture: "ernie4_5-moe",
    keys: |p, _| {
        let mut keys = expert_width(p);
        let shared = p.n_shared_experts * p.moe_intermediate_size;
        keys.extend([
            (arch::EXPERT_SHARED_COUNT, count(p.n_shared_experts)),
            (arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(shared)),
            (arch::LEADING_DENSE_BLOCK_COUNT, count(p.first_k_dense_replace)),
            (arch::INTERLEAVE_MOE_LAYER_STEP, count(1)),
        ]);
        keys
    },
    layer: |p, i| [attention(p, name::FFN_NORM), deepseek_like_ffn(p, i)].concat(),
    model: nothing,
};

pub(super) static HUNYUAN_MOE: Family = Family {
    architecture: "hunyuan-moe",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.push((arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(p.shared_expert_intermediate_size)));
        keys.push((arch::EXPERT_SHARED_COUNT, count(1)));
        keys
    },
    layer: |p, _| {
        let shared = shared_expert(p, p.shared_expert_intermediate_size);
        [attention(p, name::FFN_NORM), qk_norm_of_a_head(p), experts(p), shared].concat()
    },
    model: nothing,
};

pub(super) static BAILINGMOE2: Family = Family {
    architecture: "bailingmoe2",
    keys: |p, _| {
        let mut keys = deepseek_like(p, Some(SIGMOID));
        keys.extend([
            (arch::EXPERT_GROUP_COUNT, count(8)),
            (arch::EXPERT_GROUP_USED_COUNT, count(4)),
            (arch::ROPE_DIMENSION_COUNT, count(p.head_dim / 2)),
        ]);
        keys
    },
    layer: |p, i| [attention(p, name::FFN_NORM), qk_norm_of_a_head(p), deepseek_like_ffn(p, i)].concat(),
    model: nothing,
};

pub(super) static GPT_OSS: Family = Family {
    architecture: "gpt-oss",
    keys: |p, _| {
        let mut keys = expert_width(p);
        keys.extend([
            (arch::SLIDING_WINDOW, count(128)),
            (arch::ROPE_SCALING_TYPE, text("yarn")),
            (arch::ROPE_SCALING_FACTOR, MetaValue::F32(32.0)),
            (arch::ROPE_SCALING_ORIG_CTX, count(4096)),
        ]);
        keys
    },
    layer: |p, _| {
        let (e, f, d) = (p.num_experts, p.moe_intermediate_size, p.hidden_size);
        let biases = vec![
            (name::ATTN_OUTPUT_BIAS, vec![d]),
            (name::ATTN_SINKS, vec![p.num_attention_heads]),
            (name::FFN_GATE_INP_BIAS, vec![e]),
            (name::FFN_GATE_EXPS_BIAS, vec![e, f]),
            (name::FFN_UP_EXPS_BIAS, vec![e, f]),
            (name::FFN_DOWN_EXPS_BIAS, vec![e, d]),
        ];
        [attention(p, name::POST_ATTENTION_NORM), qkv_bias(p), experts(p), biases].concat()
    },
    model: nothing,
};

/// LayerNorm and biases everywhere.
pub(super) static PHIMOE: Family = Family {
    architecture: "phimoe",
    keys: |p, _| {
        vec![
            (arch::ROPE_DIMENSION_COUNT, count(p.head_dim)),
            (arch::ROPE_SCALING_ORIG_CTX, count(4096)),
            (arch::ROPE_SCALING_ATTN_FACTOR, MetaValue::F32(1.190_238_1)),
            (arch::SLIDING_WINDOW, count(131_072)),
        ]
    },
    layer: |p, _| {
        let d = p.hidden_size;
        let biases = vec![
            (name::ATTN_NORM_BIAS, vec![d]),
            (name::FFN_NORM_BIAS, vec![d]),
            (name::ATTN_OUTPUT_BIAS, vec![d]),
        ];
        [attention(p, name::FFN_NORM), qkv_bias(p), biases, experts(p)].concat()
    },
    model: |p| {
        vec![
            (tensor::OUTPUT_BIAS, vec![p.vocab_size]),
            (tensor::OUTPUT_NORM_BIAS, vec![p.hidden_size]),
            (tensor::ROPE_FACTORS_LONG, vec![p.head_dim / 2]),
            (tensor::ROPE_FACTORS_SHORT, vec![p.head_dim / 2]),
        ]
    },
};

/// LayerNorm without bias; q, k and v in one tensor.
pub(super) static DBRX: Family = Family {
    architecture: "dbrx",
    keys: |p, _| {
        vec![(arch::LAYER_NORM_EPS, MetaValue::F32(p.rms_norm_eps)), (arch::CLAMP_KQV, MetaValue::F32(8.0))]
    },
    layer: |p, _| {
        let (d, q, kv) = (p.hidden_size, p.q_dim(), p.kv_dim());
        let attention = vec![
            (name::ATTN_NORM, vec![d]),
            (name::ATTN_QKV, vec![q + 2 * kv, d]),
            (name::ATTN_OUTPUT, vec![d, q]),
            (name::ATTN_OUTPUT_NORM, vec![d]),
        ];
        [attention, experts(p)].concat()
    },
    model: nothing,
};

pub(super) fn sections(of: [i32; 4]) -> MetaValue {
    MetaValue::Array(MetaArray::I32(of.to_vec()))
}

/// The tensors of the whole model.
pub(super) fn model_tensors(p: &Preset) -> Tensors {
    let own = (p.family.model)(p);
    // LFM2's final norm has another name.
    let has_norm = own.iter().any(|(name, _)| *name == tensor::TOKEN_EMBD_NORM);
    let mut tensors = vec![
        (tensor::OUTPUT, vec![p.vocab_size, p.hidden_size]),
        (tensor::OUTPUT_NORM, vec![p.hidden_size]),
        (tensor::TOKEN_EMBD, vec![p.vocab_size, p.hidden_size]),
    ];
    tensors.retain(|(name, _)| match *name {
        tensor::OUTPUT => !p.tie_word_embeddings,
        tensor::OUTPUT_NORM => !has_norm,
        _ => true,
    });
    tensors.extend(own);
    tensors
}
