//! A layer's indexer: small queries, made of the queries' latent, and one small key a token, kept in a state of its own, rank the
//! cached positions; attention sees the best of them. Some layers take what an earlier one chose.
//!
//! Definition: DeepSeek-V3.2 (arXiv 2512.02556, section 2.1), Hugging Face transformers,
//! `models/deepseek_v32/modeling_deepseek_v32.py`, `models/glm_moe_dsa/modeling_glm_moe_dsa.py`.

use super::rope;
use crate::architectures::{LowerError, Lowering, only};
use crate::config::{AttentionConfig, IndexerConfig};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{IndexScoresAttrs, LayerIdx, Lifetime, Op, RopeSpec, Stage, StateRole, ValueId};

/// Added to the variance of the key's LayerNorm: the models' code has it, no key says it.
const KEY_NORM_EPS: f32 = 1e-6;

/// 1 where a query sees a position, else 0 [1, T, S], of the normed input and the queries' latent.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn choice(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [normed, q_latent]: [ValueId; 2],
    attention: &AttentionConfig,
    config: &IndexerConfig,
) -> Result<ValueId, LowerError> {
    let at = Some(layer);
    let file = |rest: &str| blk(layer.index(), rest);
    let IndexerConfig { num_heads, head_dim, top_k, pairing, of_layer } = *config;
    if let Some(chosen) = of_layer.and_then(|layer| l.choices.get(&layer)) {
        return Ok(*chosen);
    }
    let product =
        |l: &mut Lowering<'_>, name, rest, rows, scale, x: ValueId| -> Result<ValueId, LowerError> {
            let inner = l.graph.value(x).shape.width().unwrap_or(0);
            let weight = l.matrix(&file(rest), rows, inner)?;
            Ok(only(l.graph.push(at, name, Op::MatMul { weight, bias: None, scale }, &[x])?))
        };
    let mut q = product(l, "index_q_proj", tensor::INDEXER_ATTN_Q_B, num_heads * head_dim, None, q_latent)?;
    let k = product(l, "index_k_proj", tensor::INDEXER_ATTN_K, head_dim, None, normed)?;
    let weight = l.vector(&file(tensor::INDEXER_K_NORM), head_dim)?;
    let bias = Some(l.vector(&file(tensor::INDEXER_K_NORM_BIAS), head_dim)?);
    let op = Op::LayerNorm { weight, bias, eps: KEY_NORM_EPS };
    let mut k = only(l.graph.push(at, "index_k_norm", op, &[k])?);
    if let Some(rope) = &attention.rope {
        let table = l.graph.add_rope_table(RopeSpec {
            theta: rope.theta,
            dims: rope.dims,
            scaling: rope.scaling,
            divisors: Vec::new(),
            behind: 0,
            back: false,
        });
        q = rope::lower(l, layer, "index_q_rope", q, num_heads, table, pairing)?;
        k = rope::lower(l, layer, "index_k_rope", k, 1, table, pairing)?;
    }
    let scale = (1.0 / ((num_heads * head_dim) as f64).sqrt()) as f32;
    let w = product(l, "index_weights", tensor::INDEXER_PROJ, num_heads, Some(scale), normed)?;

    let rows = Lifetime::PerToken { window: None };
    let key = l.graph.add_state(StateRole::IndexKey, layer, 1, head_dim, rows);
    let inputs = [k, l.graph.inputs.kv_slots];
    let keys = only(l.graph.push(at, "index_kv_write", Op::KvWrite { key, value: None }, &inputs)?);
    let (positions, sequence) = (l.graph.inputs.positions, l.graph.inputs.sequence);
    let op = Op::IndexScores(IndexScoresAttrs { num_heads, head_dim });
    let scores = only(l.graph.push(at, "index_scores", op, &[q, w, keys, positions, sequence])?);
    l.graph.tap(at, Stage::IndexScores, &[scores])?;
    let op = Op::IndexSelect { top_k, every: 1 };
    let chosen = only(l.graph.push(at, "index_select", op, &[scores, positions, sequence])?);
    l.graph.tap(at, Stage::IndexSelected, &[chosen])?;
    l.choices.insert(layer.index(), chosen);
    Ok(chosen)
}
