//! Files of models with compressed attention and hyper-connections: DeepSeek-V4.

use super::family::{
    Family, Keys, Tensors, count, counts, deepseek_like, experts, selection_bias, shared_expert, text,
};
use super::preset::Preset;
use crate::gguf::keys::{arch, layer as name, tensor};
use crate::gguf::{MetaArray, MetaValue};

const STREAMS: usize = 4;
const HASH_LAYERS: usize = 3;
const Q_LORA_RANK: usize = 1024;
const O_GROUPS: usize = 8;
const O_LORA_RANK: usize = 1024;
/// Of an indexer: its heads, and their size.
const INDEXER: [usize; 2] = [64, 128];
const SQRT_SOFTPLUS: u32 = 4;

/// Positions of an entry in layer i: none in the first two layers, then 4 and 128 in turn.
fn ratio(i: usize) -> usize {
    match i {
        0 | 1 => 0,
        _ if i.is_multiple_of(2) => 4,
        _ => 128,
    }
}

fn keys(p: &Preset, layers: usize) -> Keys {
    let limits = || MetaValue::Array(MetaArray::F32(vec![10.0; layers]));
    let mut keys = deepseek_like(p, Some(SQRT_SOFTPLUS));
    keys.retain(|(key, _)| *key != arch::LEADING_DENSE_BLOCK_COUNT);
    keys.extend([
        (arch::Q_LORA_RANK, count(Q_LORA_RANK)),
        (arch::SLIDING_WINDOW, count(128)),
        // Those of the layer for drafts are counted there, too.
        (arch::COMPRESS_RATIOS, counts((0..layers).map(ratio).chain([0]))),
        (arch::COMPRESS_ROPE_FREQ_BASE, MetaValue::F32(160_000.0)),
        (arch::OUTPUT_GROUP_COUNT, count(O_GROUPS)),
        (arch::OUTPUT_LORA_RANK, count(O_LORA_RANK)),
        (arch::INDEXER_HEAD_COUNT, count(INDEXER[0])),
        (arch::INDEXER_KEY_LENGTH, count(INDEXER[1])),
        (arch::INDEXER_TOP_K, count(512)),
        (arch::HYPER_CONNECTION_COUNT, count(STREAMS)),
        (arch::HYPER_CONNECTION_ITERATIONS, count(20)),
        (arch::HYPER_CONNECTION_EPSILON, MetaValue::F32(1e-6)),
        (arch::HASH_LAYER_COUNT, count(HASH_LAYERS.min(layers))),
        (arch::EMBEDDING_LENGTH_OUT, count(STREAMS * p.hidden_size)),
        (arch::SWIGLU_CLAMP_EXP, limits()),
        (arch::SWIGLU_CLAMP_SHEXP, limits()),
        (arch::ROPE_DIMENSION_COUNT, count(64)),
        (arch::ROPE_SCALING_TYPE, text("yarn")),
        (arch::ROPE_SCALING_FACTOR, MetaValue::F32(16.0)),
        (arch::ROPE_SCALING_ORIG_CTX, count(65_536)),
        (arch::ROPE_SCALING_YARN_BETA_FAST, MetaValue::F32(32.0)),
        (arch::ROPE_SCALING_YARN_BETA_SLOW, MetaValue::F32(1.0)),
    ]);
    keys
}

fn layer(p: &Preset, i: usize) -> Tensors {
    let (d, n, h) = (p.hidden_size, p.head_dim, p.num_attention_heads);
    let mut tensors = vec![
        (name::ATTN_NORM, vec![d]),
        (name::ATTN_Q_A, vec![Q_LORA_RANK, d]),
        (name::ATTN_Q_A_NORM, vec![Q_LORA_RANK]),
        (name::ATTN_Q_B, vec![h * n, Q_LORA_RANK]),
        (name::ATTN_KV, vec![n, d]),
        (name::ATTN_KV_A_NORM, vec![n]),
        (name::ATTN_SINKS, vec![h]),
        (name::ATTN_OUTPUT_A, vec![O_GROUPS * O_LORA_RANK, h / O_GROUPS * n]),
        (name::ATTN_OUTPUT_B, vec![d, O_GROUPS * O_LORA_RANK]),
        (name::FFN_NORM, vec![d]),
    ];
    let gates = (2 + STREAMS) * STREAMS;
    for [product, base, scale] in [
        [name::HC_ATTN_FN, name::HC_ATTN_BASE, name::HC_ATTN_SCALE],
        [name::HC_FFN_FN, name::HC_FFN_BASE, name::HC_FFN_SCALE],
    ] {
        tensors.extend([(product, vec![gates, STREAMS * d]), (base, vec![gates]), (scale, vec![3])]);
    }
    let compressor = |[kv, gate, ape, norm]: [&'static str; 4], ratio: usize, width: usize| {
        let rows = if ratio == 4 { 2 * width } else { width };
        vec![(kv, vec![rows, d]), (gate, vec![rows, d]), (ape, vec![ratio, rows]), (norm, vec![width])]
    };
    let ratio = ratio(i);
    if ratio > 0 {
        let names = [
            name::ATTN_COMPRESSOR_KV,
            name::ATTN_COMPRESSOR_GATE,
            name::ATTN_COMPRESSOR_APE,
            name::ATTN_COMPRESSOR_NORM,
        ];
        tensors.extend(compressor(names, ratio, n));
    }
    if ratio == 4 {
        let names = [
            name::INDEXER_COMPRESSOR_KV,
            name::INDEXER_COMPRESSOR_GATE,
            name::INDEXER_COMPRESSOR_APE,
            name::INDEXER_COMPRESSOR_NORM,
        ];
        let [heads, width] = INDEXER;
        tensors.extend(compressor(names, ratio, width));
        tensors.push((name::INDEXER_ATTN_Q_B, vec![heads * width, Q_LORA_RANK]));
        tensors.push((name::INDEXER_PROJ, vec![heads, d]));
    }
    tensors.extend(experts(p));
    tensors.extend(shared_expert(p, p.n_shared_experts * p.moe_intermediate_size));
    match i < HASH_LAYERS {
        true => tensors.push((name::FFN_GATE_TID2EID, vec![p.vocab_size, p.num_experts_per_tok])),
        false => tensors.extend(selection_bias(p)),
    }
    tensors
}

pub(super) static DEEPSEEK_V4: Family = Family {
    architecture: "deepseek4",
    keys,
    layer,
    model: |p| {
        vec![
            (tensor::OUTPUT_HC_FN, vec![STREAMS, STREAMS * p.hidden_size]),
            (tensor::OUTPUT_HC_BASE, vec![STREAMS]),
            (tensor::OUTPUT_HC_SCALE, vec![1]),
        ]
    },
};
