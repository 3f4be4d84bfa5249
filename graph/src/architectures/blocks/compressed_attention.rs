//! Attention of DeepSeek-V4: one head of keys, which are the values too, over a window of positions and, in most layers, over
//! entries that windows of earlier positions are compressed to; an indexer may choose among those. What RoPE turned in the
//! values is turned back in what they add up to, and o_proj comes in two parts, the first by groups of heads.
//!
//! Definition: Hugging Face transformers, `models/deepseek_v4/modeling_deepseek_v4.py`. An entry is kept at the position that
//! completes its window, so that it goes with that position's keys whenever a sequence is cut or shared.

use super::attention::{attend, write};
use super::{norm, rope};
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{AttentionConfig, CompressedConfig, IndexerConfig, RopeConfig};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{
    AttentionAttrs, CompressAttrs, CompressedAttentionAttrs, IndexScoresAttrs, LayerIdx, Lifetime, Op,
    RopePairing, RopeSpec, Stage, StateRole, ValueId, WeightHome, WeightSlice,
};

/// What o_proj gives, of the normed input [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    compressed: &CompressedConfig,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let config = l.config.layers[layer.index()].attention.clone();
    let (heads, d, hidden_size) = (config.num_attention_heads, config.head_dim, l.config.hidden_size);
    let CompressedConfig { q_lora_rank, o_groups, o_lora_rank, ratio, overlap } = *compressed;

    let a = product(l, layer, "q_a_proj", tensor::ATTN_Q_A, [q_lora_rank, hidden_size], normed)?;
    l.graph.tap(at, Stage::QAProj, &[a])?;
    let latent = norm::lower(l, at, "q_a_layernorm", &file(tensor::ATTN_Q_A_NORM), a, 1)?;
    l.graph.tap(at, Stage::QANorm, &[latent])?;
    let q = product(l, layer, "q_b_proj", tensor::ATTN_Q_B, [heads * d, q_lora_rank], latent)?;
    let kv = product(l, layer, "kv_proj", tensor::ATTN_KV, [d, hidden_size], normed)?;
    l.graph.tap(at, Stage::QkvMatmul, &[q, kv])?;
    let op = Op::RmsNorm { weight: None, eps: l.config.rms_norm_eps, heads };
    let q = only(l.graph.push(at, "q_norm", op, &[q])?);
    l.graph.tap(at, Stage::QNorm, &[q])?;
    let kv = norm::lower(l, at, "kv_a_layernorm", &file(tensor::ATTN_KV_A_NORM), kv, 1)?;
    l.graph.tap(at, Stage::KvANorm, &[kv])?;
    let turn = Turn { behind: 0, back: false };
    let names = ["q_nope", "q_pe", "q_rope", "q_turned"];
    let q = turned(l, layer, names, q, heads, &config, turn)?;
    let kv = turned(l, layer, ["k_nope", "k_pe", "k_rope", "k_turned"], kv, 1, &config, turn)?;
    l.graph.tap(at, Stage::QPostRope, &[q])?;
    l.graph.tap(at, Stage::KPostRope, &[kv])?;

    let attended = seen(l, layer, [normed, latent, q, kv], &config, ratio, overlap)?;
    l.graph.tap(at, Stage::AttnLatent, &[attended])?;
    let turn = Turn { behind: 0, back: true };
    let names = ["o_nope", "o_pe", "o_rope_back", "attention_turned"];
    let attended = turned(l, layer, names, attended, heads, &config, turn)?;
    l.graph.tap(at, Stage::Attention, &[attended])?;

    // Of each group of heads the rows of its own.
    let inner = heads / o_groups * d;
    let stored = [o_groups * o_lora_rank, inner];
    let shape = [o_groups, o_lora_rank, inner];
    let tensor = l.weight_as(&file(tensor::ATTN_OUTPUT_A), &stored, &shape)?;
    let weight =
        WeightSlice { tensor, rows: 0..o_lora_rank, experts: Some(0..o_groups), home: WeightHome::Device };
    let op = Op::HeadMatMul { weight, transposed: false };
    let grouped = only(l.graph.push(at, "o_a_proj", op, &[attended])?);
    let shape = [hidden_size, o_groups * o_lora_rank];
    let out = product(l, layer, "o_proj", tensor::ATTN_OUTPUT_B, shape, grouped)?;
    l.graph.tap(at, Stage::AttnOut, &[out])?;
    Ok(out)
}

/// Softmax times keys, over the window and what entries there are.
fn seen(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [normed, latent, q, kv]: [ValueId; 4],
    config: &AttentionConfig,
    ratio: Option<usize>,
    overlap: bool,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let (heads, d) = (config.num_attention_heads, config.head_dim);
    let sinks = Some(l.vector(&blk(layer.index(), tensor::ATTN_SINKS), heads)?);
    let attrs = AttentionAttrs {
        num_attention_heads: heads,
        num_key_value_heads: 1,
        head_dim: d,
        value_head_dim: d,
        scale: config.scale,
        window: config.sliding_window,
        chunk: None,
        soft_cap: None,
        sinks,
        value_in_key: true,
        masked: false,
    };
    // Beside entries, which have a row for every position, so have keys.
    let window = attrs.window.filter(|_| ratio.is_none());
    let cache = write(l, layer, kv, None, &AttentionAttrs { window, ..attrs.clone() })?;
    let (Some(ratio), Some(window)) = (ratio, config.sliding_window) else {
        return attend(l, layer, q, cache, None, attrs);
    };
    let of_layer = Entries { ratio, overlap, width: d, spec: &ATTENTION };
    let entries = kept(l, layer, normed, config, &of_layer, StateRole::Entry)?;
    let mask = match &config.indexer {
        Some(indexer) => Some(choice(l, layer, [normed, latent], config, indexer, &of_layer)?),
        None => None,
    };
    let attrs = CompressedAttentionAttrs {
        num_attention_heads: heads,
        head_dim: d,
        scale: config.scale,
        window,
        ratio,
        sinks,
        masked: mask.is_some(),
    };
    let (positions, sequence) = (l.graph.inputs.positions, l.graph.inputs.sequence);
    let inputs: Vec<ValueId> = [q, cache[0], entries, positions, sequence].into_iter().chain(mask).collect();
    Ok(only(l.graph.push(at, "attention", Op::CompressedAttention(attrs), &inputs)?))
}

/// Names of what makes entries: nodes and tensors.
struct CompressorSpec {
    /// Products of kv and of gate, the compression, its norm, the parts of its rotation, and the write.
    names: [&'static str; 9],
    /// kv, gate, the gate's bias, norm.
    tensors: [&'static str; 4],
    stage: Stage,
}

const ATTENTION: CompressorSpec = CompressorSpec {
    names: [
        "compressor_kv",
        "compressor_gate",
        "compress",
        "compressor_norm",
        "entry_nope",
        "entry_pe",
        "entry_rope",
        "entry_turned",
        "entry_write",
    ],
    tensors: [
        tensor::ATTN_COMPRESSOR_KV,
        tensor::ATTN_COMPRESSOR_GATE,
        tensor::ATTN_COMPRESSOR_APE,
        tensor::ATTN_COMPRESSOR_NORM,
    ],
    stage: Stage::Compressed,
};

const INDEXER: CompressorSpec = CompressorSpec {
    names: [
        "index_compressor_kv",
        "index_compressor_gate",
        "index_compress",
        "index_compressor_norm",
        "index_entry_nope",
        "index_entry_pe",
        "index_entry_rope",
        "index_entry_turned",
        "index_entry_write",
    ],
    tensors: [
        tensor::INDEXER_COMPRESSOR_KV,
        tensor::INDEXER_COMPRESSOR_GATE,
        tensor::INDEXER_COMPRESSOR_APE,
        tensor::INDEXER_COMPRESSOR_NORM,
    ],
    stage: Stage::IndexCompressed,
};

/// What entries are made of.
struct Entries<'a> {
    ratio: usize,
    overlap: bool,
    /// Elements of one.
    width: usize,
    spec: &'a CompressorSpec,
}

/// The state of entries, each at the position that completes its window.
fn kept(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &AttentionConfig,
    entries: &Entries<'_>,
    role: StateRole,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let Entries { ratio, overlap, width, spec } = *entries;
    let [kv, gate, compress, norm, nope, pe, rope, turned_name, write] = spec.names;
    let [kv_tensor, gate_tensor, ape, norm_tensor] = spec.tensors;
    let rows = if overlap { 2 * width } else { width };
    let hidden_size = l.config.hidden_size;
    let a = product(l, layer, kv, kv_tensor, [rows, hidden_size], normed)?;
    let b = product(l, layer, gate, gate_tensor, [rows, hidden_size], normed)?;
    let bias = l.floats(&file(ape), &[ratio, rows])?;
    let slots = 2 * if overlap { 3 * ratio } else { ratio };
    let state = l.graph.add_sequence_state(StateRole::Window, layer, &[width, slots]);
    let attrs = CompressAttrs { ratio, overlap, bias, state };
    let inputs = [a, b, l.graph.inputs.positions, l.graph.inputs.sequence];
    let entry = only(l.graph.push(at, compress, Op::Compress(attrs), &inputs)?);
    let entry = norm::lower(l, at, norm, &file(norm_tensor), entry, 1)?;
    // An entry turns as the first position of its window.
    let turn = Turn { behind: ratio as u32 - 1, back: false };
    let entry = turned(l, layer, [nope, pe, rope, turned_name], entry, 1, config, turn)?;
    l.graph.tap(at, spec.stage, &[entry])?;
    let key = l.graph.add_state(role, layer, 1, width, Lifetime::PerToken { window: None });
    let inputs = [entry, l.graph.inputs.kv_slots];
    Ok(only(l.graph.push(at, write, Op::KvWrite { key, value: None }, &inputs)?))
}

/// 1 where a query sees an entry, else 0 [1, T, S], of the normed input and the queries' latent.
fn choice(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [normed, latent]: [ValueId; 2],
    config: &AttentionConfig,
    indexer: &IndexerConfig,
    entries: &Entries<'_>,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let IndexerConfig { num_heads, head_dim, top_k, pairing: _, of_layer: _ } = *indexer;
    let rank = l.graph.value(latent).shape.width().unwrap_or(0);
    let shape = [num_heads * head_dim, rank];
    let q = product(l, layer, "index_q_proj", tensor::INDEXER_ATTN_Q_B, shape, latent)?;
    let names = ["index_q_nope", "index_q_pe", "index_q_rope", "index_q_turned"];
    let q = turned(l, layer, names, q, num_heads, config, Turn { behind: 0, back: false })?;
    let entries = Entries { width: head_dim, spec: &INDEXER, ..*entries };
    let keys = kept(l, layer, normed, config, &entries, StateRole::IndexKey)?;
    let scale = Some((1.0 / ((num_heads * head_dim) as f64).sqrt()) as f32);
    let weight = l.matrix(&blk(layer.index(), tensor::INDEXER_PROJ), num_heads, l.config.hidden_size)?;
    let w = only(l.graph.push(at, "index_weights", Op::MatMul { weight, bias: None, scale }, &[normed])?);
    let (positions, sequence) = (l.graph.inputs.positions, l.graph.inputs.sequence);
    let op = Op::IndexScores(IndexScoresAttrs { num_heads, head_dim });
    let scores = only(l.graph.push(at, "index_scores", op, &[q, w, keys, positions, sequence])?);
    l.graph.tap(at, Stage::IndexScores, &[scores])?;
    let op = Op::IndexSelect { top_k, every: entries.ratio };
    let chosen = only(l.graph.push(at, "index_select", op, &[scores, positions, sequence])?);
    l.graph.tap(at, Stage::IndexSelected, &[chosen])?;
    Ok(chosen)
}

/// A product with the whole of a layer's matrix.
fn product(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    name: &'static str,
    rest: &str,
    [rows, inner]: [usize; 2],
    x: ValueId,
) -> Result<ValueId, LowerError> {
    let weight = l.matrix(&blk(layer.index(), rest), rows, inner)?;
    Ok(only(l.graph.push(Some(layer), name, Op::MatMul { weight, bias: None, scale: None }, &[x])?))
}

/// Which way, and as which position, counting back from a row's own.
#[derive(Clone, Copy)]
struct Turn {
    behind: u32,
    back: bool,
}

/// RoPE on the last elements of each head: `names` are of those in front, of the last, of their rotation, and of all together.
fn turned(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [front, last, rotation, together]: [&'static str; 4],
    x: ValueId,
    heads: usize,
    config: &AttentionConfig,
    Turn { behind, back }: Turn,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let Some(RopeConfig { theta, dims, scaling, pairing }) = config.rope.clone() else { return Ok(x) };
    let pairing: RopePairing = pairing;
    let width = l.graph.value(x).shape.width().unwrap_or(0) / heads;
    let table = l.graph.add_rope_table(RopeSpec { theta, dims, scaling, divisors: Vec::new(), behind, back });
    if dims == width {
        return rope::lower(l, layer, rotation, x, heads, table, pairing);
    }
    let part = |l: &mut Lowering<'_>, name, start, len| -> Result<ValueId, LowerError> {
        Ok(only(l.graph.push(at, name, Op::Slice { heads, start, len }, &[x])?))
    };
    let nope = part(l, front, 0, width.saturating_sub(dims))?;
    let pe = part(l, last, width.saturating_sub(dims), dims)?;
    let pe = rope::lower(l, layer, rotation, pe, heads, table, pairing)?;
    Ok(only(l.graph.push(at, together, Op::Concat { heads }, &[nope, pe])?))
}
