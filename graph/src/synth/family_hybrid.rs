//! Files of models with recurrent layers: gated delta nets, mamba2, short convolutions.

use super::family::{
    Family, Keys, SIGMOID, Tensors, attention, count, counts, dense, expert_width, experts, nothing,
    qk_norm_of_a_head, sections, selection_bias, shared_expert,
};
use super::preset::Preset;
use crate::gguf::MetaValue;
use crate::gguf::keys::{arch, layer as name, tensor};

/// What a recurrent layer's state is made of.
struct Recurrence {
    conv_kernel: usize,
    /// Heads of values (delta net), heads (mamba2).
    heads: usize,
    /// Elements of one.
    head_dim: usize,
    /// Heads of keys (delta net), groups (mamba2).
    groups: usize,
    /// Elements along the keys.
    state: usize,
}

impl Recurrence {
    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    fn keys(&self) -> Keys {
        vec![
            (arch::SSM_CONV_KERNEL, count(self.conv_kernel)),
            (arch::SSM_STATE_SIZE, count(self.state)),
            (arch::SSM_GROUP_COUNT, count(self.groups)),
            (arch::SSM_TIME_STEP_RANK, count(self.heads)),
            (arch::SSM_INNER_SIZE, count(self.inner())),
        ]
    }
}

const QWEN3_NEXT: Recurrence =
    Recurrence { conv_kernel: 4, heads: 32, head_dim: 128, groups: 16, state: 128 };
const NEMOTRON: Recurrence = Recurrence { conv_kernel: 4, heads: 64, head_dim: 64, groups: 8, state: 128 };
const GRANITE_TINY: Recurrence =
    Recurrence { conv_kernel: 4, heads: 48, head_dim: 64, groups: 1, state: 128 };
const GRANITE_SMALL: Recurrence = Recurrence { heads: 128, ..GRANITE_TINY };

/// Every fourth layer has attention.
const FULL_ATTENTION_INTERVAL: usize = 4;

fn qwen_keys(p: &Preset, more: Keys) -> Keys {
    let mut keys = expert_width(p);
    keys.extend(QWEN3_NEXT.keys());
    keys.extend([
        (arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(p.shared_expert_intermediate_size)),
        (arch::FULL_ATTENTION_INTERVAL, count(FULL_ATTENTION_INTERVAL)),
        (arch::ROPE_DIMENSION_COUNT, count(p.head_dim / 4)),
    ]);
    keys.extend(more);
    keys
}

/// A layer of Qwen3-Next and Qwen3.5; `ba`: how the delta net's beta and alpha come.
fn qwen_layer(p: &Preset, i: usize, ba: Tensors) -> Tensors {
    let d = p.hidden_size;
    let mixer = if (i + 1).is_multiple_of(FULL_ATTENTION_INTERVAL) {
        // Behind each head's query its gate.
        let (q, kv) = (p.q_dim(), p.kv_dim());
        let attention = vec![
            (name::ATTN_Q, vec![2 * q, d]),
            (name::ATTN_K, vec![kv, d]),
            (name::ATTN_V, vec![kv, d]),
            (name::ATTN_OUTPUT, vec![d, q]),
        ];
        [attention, qk_norm_of_a_head(p)].concat()
    } else {
        let r = &QWEN3_NEXT;
        let channels = 2 * r.groups * r.state + r.inner();
        let delta = vec![
            (name::ATTN_QKV, vec![channels, d]),
            (name::ATTN_GATE, vec![r.inner(), d]),
            (name::SSM_CONV1D, vec![channels, r.conv_kernel]),
            (name::SSM_A, vec![r.heads]),
            (name::SSM_DT_BIAS, vec![r.heads]),
            (name::SSM_NORM, vec![r.head_dim]),
            (name::SSM_OUT, vec![d, r.inner()]),
        ];
        [delta, ba].concat()
    };
    let norms = vec![(name::ATTN_NORM, vec![d]), (name::POST_ATTENTION_NORM, vec![d])];
    let gate = vec![(name::FFN_GATE_INP_SHEXP, vec![1, d])];
    [norms, mixer, experts(p), gate, shared_expert(p, p.shared_expert_intermediate_size)].concat()
}

pub(super) static QWEN35MOE: Family = Family {
    architecture: "qwen35moe",
    keys: |p, _| qwen_keys(p, vec![(arch::ROPE_DIMENSION_SECTIONS, sections([11, 11, 10, 0]))]),
    layer: |p, i| {
        let of = |tensor| (tensor, vec![QWEN3_NEXT.heads, p.hidden_size]);
        qwen_layer(p, i, vec![of(name::SSM_ALPHA), of(name::SSM_BETA)])
    },
    model: nothing,
};

pub(super) static QWEN3NEXT: Family = Family {
    architecture: "qwen3next",
    keys: |p, _| qwen_keys(p, Vec::new()),
    layer: |p, i| qwen_layer(p, i, vec![(name::SSM_BA, vec![2 * QWEN3_NEXT.heads, p.hidden_size])]),
    model: nothing,
};

fn mamba2(p: &Preset, r: &Recurrence) -> Tensors {
    let (d, inner) = (p.hidden_size, r.inner());
    let channels = inner + 2 * r.groups * r.state;
    vec![
        (name::SSM_IN, vec![inner + channels + r.heads, d]),
        (name::SSM_CONV1D, vec![channels, r.conv_kernel]),
        (name::SSM_CONV1D_BIAS, vec![channels]),
        (name::SSM_A, vec![r.heads, 1]),
        (name::SSM_D, vec![r.heads, 1]),
        (name::SSM_DT_BIAS, vec![r.heads]),
        (name::SSM_NORM, vec![r.groups, inner / r.groups]),
        (name::SSM_OUT, vec![d, inner]),
    ]
}

/// Nemotron-3-Nano's blocks: mamba2, experts, attention.
const NANO: &[u8] = b"MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME";

pub(super) static NEMOTRON_H_MOE: Family = Family {
    architecture: "nemotron_h_moe",
    keys: |p, layers| {
        let blocks = || NANO.iter().take(layers);
        let mut keys = expert_width(p);
        keys.extend(NEMOTRON.keys());
        keys.extend([
            (
                arch::HEAD_COUNT_KV,
                counts(blocks().map(|b| if *b == b'*' { p.num_key_value_heads } else { 0 })),
            ),
            (
                arch::FEED_FORWARD_LENGTH,
                counts(blocks().map(|b| if *b == b'E' { p.moe_intermediate_size } else { 0 })),
            ),
            // Its files name the norms' epsilon so, though they are RMSNorm.
            (arch::LAYER_NORM_EPS, MetaValue::F32(p.rms_norm_eps)),
            (arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(p.shared_expert_intermediate_size)),
            (arch::EXPERT_SHARED_COUNT, count(1)),
            (arch::EXPERT_WEIGHTS_NORM, MetaValue::Bool(true)),
            (arch::EXPERT_WEIGHTS_SCALE, MetaValue::F32(p.routed_scaling_factor)),
            (arch::EXPERT_GROUP_COUNT, count(1)),
            (arch::EXPERT_GROUP_USED_COUNT, count(1)),
            (arch::ROPE_SCALING_FINETUNED, MetaValue::Bool(false)),
        ]);
        keys
    },
    layer: |p, i| {
        let (d, e, f) = (p.hidden_size, p.num_experts, p.moe_intermediate_size);
        let block = match NANO.get(i) {
            Some(b'M') => mamba2(p, &NEMOTRON),
            Some(b'*') => {
                let mut attention = attention(p, name::FFN_NORM);
                attention.retain(|(tensor, _)| *tensor != name::FFN_NORM && *tensor != name::ATTN_NORM);
                attention
            }
            _ => {
                let shared = p.shared_expert_intermediate_size;
                let experts = vec![
                    (name::FFN_GATE_INP, vec![e, d]),
                    (name::FFN_UP_EXPS, vec![e, f, d]),
                    (name::FFN_DOWN_EXPS, vec![e, d, f]),
                    (name::FFN_UP_SHEXP, vec![shared, d]),
                    (name::FFN_DOWN_SHEXP, vec![d, shared]),
                ];
                [experts, selection_bias(p)].concat()
            }
        };
        [vec![(name::ATTN_NORM, vec![d])], block].concat()
    },
    model: nothing,
};

/// Granite 4.0 H's layers with attention.
const GRANITE_ATTENTION: [usize; 4] = [5, 15, 25, 35];

fn granite_keys(p: &Preset, layers: usize, r: &Recurrence, factors: [f32; 4]) -> Keys {
    let [embedding, residual, attention, logits] = factors.map(MetaValue::F32);
    let heads = |i| if GRANITE_ATTENTION.contains(&i) { p.num_key_value_heads } else { 0 };
    let mut keys = r.keys();
    keys.extend([
        (arch::HEAD_COUNT_KV, counts((0..layers).map(heads))),
        (arch::FEED_FORWARD_LENGTH, count(p.moe_intermediate_size)),
        (arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, count(p.shared_expert_intermediate_size)),
        (arch::ROPE_SCALING_FINETUNED, MetaValue::Bool(false)),
        (arch::EMBEDDING_SCALE, embedding),
        (arch::RESIDUAL_SCALE, residual),
        (arch::ATTENTION_SCALE, attention),
        (arch::LOGIT_SCALE, logits),
    ]);
    keys
}

fn granite_layer(p: &Preset, i: usize, r: &Recurrence) -> Tensors {
    let mixer = if GRANITE_ATTENTION.contains(&i) {
        attention(p, name::FFN_NORM)
    } else {
        let norms = vec![(name::ATTN_NORM, vec![p.hidden_size]), (name::FFN_NORM, vec![p.hidden_size])];
        [norms, mamba2(p, r)].concat()
    };
    [mixer, experts(p), shared_expert(p, p.shared_expert_intermediate_size)].concat()
}

pub(super) static GRANITE_H_TINY: Family = Family {
    architecture: "granitehybrid",
    keys: |p, layers| granite_keys(p, layers, &GRANITE_TINY, [12.0, 0.22, 0.007_812_5, 6.0]),
    layer: |p, i| granite_layer(p, i, &GRANITE_TINY),
    model: nothing,
};

pub(super) static GRANITE_H_SMALL: Family = Family {
    architecture: "granitehybrid",
    keys: |p, layers| granite_keys(p, layers, &GRANITE_SMALL, [12.0, 0.22, 0.007_812_5, 16.0]),
    layer: |p, i| granite_layer(p, i, &GRANITE_SMALL),
    model: nothing,
};

/// Channels of Jamba's mamba1, elements of each, what time steps are made of, and its convolution's kernel.
const JAMBA_SSM: [usize; 4] = [8192, 16, 256, 4];

pub(super) static JAMBA: Family = Family {
    architecture: "jamba",
    keys: |p, layers| {
        let [inner, state, rank, kernel] = JAMBA_SSM.map(count);
        let heads = |i: usize| if i % 8 == 4 { p.num_key_value_heads } else { 0 };
        vec![
            (arch::HEAD_COUNT_KV, counts((0..layers).map(heads))),
            (arch::SSM_INNER_SIZE, inner),
            (arch::SSM_STATE_SIZE, state),
            (arch::SSM_TIME_STEP_RANK, rank),
            (arch::SSM_CONV_KERNEL, kernel),
        ]
    },
    layer: |p, i| {
        let d = p.hidden_size;
        let mixer = if i % 8 == 4 {
            attention(p, name::FFN_NORM)
        } else {
            let [inner, state, rank, kernel] = JAMBA_SSM;
            vec![
                (name::ATTN_NORM, vec![d]),
                (name::FFN_NORM, vec![d]),
                (name::SSM_IN, vec![2 * inner, d]),
                (name::SSM_CONV1D, vec![inner, kernel]),
                (name::SSM_CONV1D_BIAS, vec![inner]),
                (name::SSM_X, vec![rank + 2 * state, inner]),
                (name::SSM_DT_NORM, vec![rank]),
                (name::SSM_B_NORM, vec![state]),
                (name::SSM_C_NORM, vec![state]),
                (name::SSM_DT, vec![inner, rank]),
                (name::SSM_DT_BIAS, vec![inner]),
                (name::SSM_A, vec![inner, state]),
                (name::SSM_D, vec![inner]),
                (name::SSM_OUT, vec![d, inner]),
            ]
        };
        let ffn = if i % 2 == 1 { experts(p) } else { dense(p) };
        [mixer, ffn].concat()
    },
    model: nothing,
};

/// LFM2-8B-A1B's layers with attention.
const LFM2_ATTENTION: [usize; 6] = [2, 6, 10, 14, 18, 21];
const LFM2_KERNEL: usize = 3;

pub(super) static LFM2MOE: Family = Family {
    architecture: "lfm2moe",
    keys: |p, layers| {
        let heads = |i| if LFM2_ATTENTION.contains(&i) { p.num_key_value_heads } else { 0 };
        let mut keys = expert_width(p);
        keys.extend([
            (arch::HEAD_COUNT_KV, counts((0..layers).map(heads))),
            (arch::SHORTCONV_L_CACHE, count(LFM2_KERNEL)),
            (arch::LEADING_DENSE_BLOCK_COUNT, count(p.first_k_dense_replace)),
            (arch::EXPERT_GATING_FUNC, MetaValue::U32(SIGMOID)),
        ]);
        keys
    },
    layer: |p, i| {
        let d = p.hidden_size;
        let mixer = if LFM2_ATTENTION.contains(&i) {
            [attention(p, name::FFN_NORM), qk_norm_of_a_head(p)].concat()
        } else {
            vec![
                (name::ATTN_NORM, vec![d]),
                (name::FFN_NORM, vec![d]),
                (name::SHORTCONV_IN_PROJ, vec![3 * d, d]),
                (name::SHORTCONV_CONV, vec![d, LFM2_KERNEL]),
                (name::SHORTCONV_OUT_PROJ, vec![d, d]),
            ]
        };
        let ffn = match i < p.first_k_dense_replace {
            true => dense(p),
            false => [experts(p), selection_bias(p)].concat(),
        };
        [mixer, ffn].concat()
    },
    // The final norm, in spite of its name.
    model: |p| vec![(tensor::TOKEN_EMBD_NORM, vec![p.hidden_size])],
};
