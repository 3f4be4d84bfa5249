//! Multi-head latent attention, absorbed: keys and values of all heads are made of one latent a token, and are never made.
//! What is cached is the latent and, behind it, a key of a few elements that RoPE rotates; a query comes to the latent
//! through its head's k matrix, and what the latents add up to goes through its head's v matrix.
//!
//! Definition: DeepSeek-V2 (arXiv 2405.04434, section 2.1), Hugging Face transformers,
//! `models/deepseek_v3/modeling_deepseek_v3.py`.

use super::attention::{attend, temper, write};
use super::{indexer, norm, rope};
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{AttentionConfig, LatentConfig};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{AttentionAttrs, LayerIdx, Op, RopeSpec, Stage, ValueId, WeightHome, WeightSlice};
use std::ops::Range;

/// What goes into o_proj, of the normed input [T, D], and its width.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    config: &AttentionConfig,
    latent: &LatentConfig,
) -> Result<(ValueId, usize), LowerError> {
    let at = Some(layer);
    let LatentConfig {
        q_lora_rank: _,
        kv_lora_rank,
        qk_nope_head_dim,
        qk_rope_head_dim,
        v_head_dim,
        norm_eps,
    } = *latent;
    let heads = config.num_attention_heads;

    let (q, q_latent) = queries(l, layer, normed, heads, latent)?;
    let part = |l: &mut Lowering<'_>, name, start, len| -> Result<ValueId, LowerError> {
        Ok(only(l.graph.push(at, name, Op::Slice { heads, start, len }, &[q])?))
    };
    let q_nope = part(l, "q_nope", 0, qk_nope_head_dim)?;
    let q_rope = part(l, "q_pe", qk_nope_head_dim, qk_rope_head_dim)?;
    l.graph.tap(at, Stage::QNope, &[q_nope])?;
    l.graph.tap(at, Stage::QPe, &[q_rope])?;
    let compressed = kv_lora_rank + qk_rope_head_dim;
    let name = blk(layer.index(), tensor::ATTN_KV_A_MQA);
    let product = |l: &mut Lowering<'_>, name_of_node, rows: Range<usize>| -> Result<ValueId, LowerError> {
        let weight = WeightSlice { rows, ..l.matrix(&name, compressed, l.config.hidden_size)? };
        Ok(only(l.graph.push(at, name_of_node, Op::MatMul { weight, bias: None, scale: None }, &[normed])?))
    };
    let c = product(l, "kv_a_proj", 0..kv_lora_rank)?;
    let k_rope = product(l, "k_pe_proj", kv_lora_rank..compressed)?;
    l.graph.tap(at, Stage::QkvMatmul, &[q, c, k_rope])?;
    let c = latent_norm(l, layer, ("kv_a_layernorm", tensor::ATTN_KV_A_NORM), c, norm_eps)?;
    l.graph.tap(at, Stage::KvANorm, &[c])?;

    let (mut q_rope, mut k_rope) = (q_rope, k_rope);
    if let Some(rope) = &config.rope {
        let table = l.graph.add_rope_table(RopeSpec {
            theta: rope.theta,
            dims: rope.dims,
            scaling: rope.scaling,
            divisors: Vec::new(),
            behind: 0,
            back: false,
        });
        q_rope = rope::lower(l, layer, "q_rope", q_rope, heads, table, rope.pairing)?;
        k_rope = rope::lower(l, layer, "k_rope", k_rope, 1, table, rope.pairing)?;
        l.graph.tap(at, Stage::QPostRope, &[q_rope])?;
        l.graph.tap(at, Stage::KPostRope, &[k_rope])?;
    }
    let (k_matrix, transposed, v_matrix) = head_matrices(l, layer, heads, latent)?;
    let op = Op::HeadMatMul { weight: k_matrix, transposed };
    let absorbed = only(l.graph.push(at, "q_absorbed", op, &[q_nope])?);
    l.graph.tap(at, Stage::QAbsorbed, &[absorbed])?;
    let q = only(l.graph.push(at, "q_latent", Op::Concat { heads }, &[absorbed, q_rope])?);
    let q = temper(l, layer, q, config)?;
    l.graph.tap(at, Stage::QLatent, &[q])?;
    let k = only(l.graph.push(at, "k_latent", Op::Concat { heads: 1 }, &[c, k_rope])?);
    l.graph.tap(at, Stage::KLatent, &[k])?;
    let attrs = AttentionAttrs {
        num_attention_heads: heads,
        num_key_value_heads: 1,
        head_dim: compressed,
        value_head_dim: kv_lora_rank,
        scale: config.scale,
        window: config.sliding_window,
        chunk: config.chunk,
        soft_cap: None,
        sinks: None,
        value_in_key: true,
        masked: false,
    };
    let cache = write(l, layer, k, None, &attrs)?;
    let mask = match (&config.indexer, q_latent) {
        (None, _) => None,
        (Some(indexer), Some(q_latent)) => {
            Some(indexer::choice(l, layer, [normed, q_latent], config, indexer)?)
        }
        // Its queries are made of the latent.
        (Some(_), None) => {
            let (name, wanted) = (blk(layer.index(), tensor::ATTN_Q_A), Vec::new());
            return Err(LowerError::MissingTensor { name, wanted });
        }
    };
    let latents = attend(l, layer, q, cache, mask, attrs)?;
    l.graph.tap(at, Stage::AttnLatent, &[latents])?;
    let op = Op::HeadMatMul { weight: v_matrix, transposed: false };
    let attended = only(l.graph.push(at, "v_absorbed", op, &[latents])?);
    Ok((attended, heads * v_head_dim))
}

/// q [T, H·(nope + rope)], and the latent of its own that it comes through where the model has one.
fn queries(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    heads: usize,
    latent: &LatentConfig,
) -> Result<(ValueId, Option<ValueId>), LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let width = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim);
    let product = |l: &mut Lowering<'_>, name, weight, x| -> Result<ValueId, LowerError> {
        Ok(only(l.graph.push(at, name, Op::MatMul { weight, bias: None, scale: None }, &[x])?))
    };
    let Some(rank) = latent.q_lora_rank else {
        let weight = l.matrix(&file(tensor::ATTN_Q), width, l.config.hidden_size)?;
        return Ok((product(l, "q_proj", weight, normed)?, None));
    };
    let weight = l.matrix(&file(tensor::ATTN_Q_A), rank, l.config.hidden_size)?;
    let a = product(l, "q_a_proj", weight, normed)?;
    l.graph.tap(at, Stage::QAProj, &[a])?;
    let a = latent_norm(l, layer, ("q_a_layernorm", tensor::ATTN_Q_A_NORM), a, latent.norm_eps)?;
    l.graph.tap(at, Stage::QANorm, &[a])?;
    let weight = l.matrix(&file(tensor::ATTN_Q_B), width, rank)?;
    Ok((product(l, "q_b_proj", weight, a)?, Some(a)))
}

/// The norm of a latent, with an epsilon of its own where it has one.
fn latent_norm(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    (name, tensor): (&'static str, &str),
    x: ValueId,
    eps: Option<f32>,
) -> Result<ValueId, LowerError> {
    let (at, tensor) = (Some(layer), blk(layer.index(), tensor));
    let Some(eps) = eps else { return norm::lower(l, at, name, &tensor, x, 1) };
    let width = l.graph.value(x).shape.width().unwrap_or(0);
    let op = Op::RmsNorm { weight: Some(l.vector(&tensor, width)?), eps, heads: 1 };
    Ok(only(l.graph.push(at, name, op, &[x])?))
}

/// The k matrix of each head, whether it is transposed, and the v matrix: by themselves, k's transposed by the converter, or
/// the rows of one tensor, of each head k's and then v's, as files from before April 2025 have it.
fn head_matrices(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    heads: usize,
    latent: &LatentConfig,
) -> Result<(WeightSlice, bool, WeightSlice), LowerError> {
    let LatentConfig {
        q_lora_rank: _,
        kv_lora_rank,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: _,
        v_head_dim,
        norm_eps: _,
    } = *latent;
    let (fused, k_b) = (blk(layer.index(), tensor::ATTN_KV_B), blk(layer.index(), tensor::ATTN_K_B));
    if !l.has(&fused) || l.has(&k_b) {
        let k = l.expert_matrix(&k_b, heads, kv_lora_rank, nope)?;
        let v = l.expert_matrix(&blk(layer.index(), tensor::ATTN_V_B), heads, v_head_dim, kv_lora_rank)?;
        // Some converters leave the joined one in beside them.
        l.leave_out(fused, "attention reads its two parts, which are there by themselves");
        return Ok((k, false, v));
    }
    let rows = nope + v_head_dim;
    let tensor = l.weight_as(&fused, &[heads * rows, kv_lora_rank], &[heads, rows, kv_lora_rank])?;
    let part = |rows| WeightSlice { tensor, rows, experts: Some(0..heads), home: WeightHome::Device };
    Ok((part(0..nope), true, part(nope..rows)))
}
