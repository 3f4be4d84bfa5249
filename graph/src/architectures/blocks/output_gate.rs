//! A gate on what attention gives: q_proj has, behind each head's queries, as many rows of the gate.

use crate::architectures::{LowerError, Lowering, only};
use crate::config::AttentionConfig;
use crate::ir::{ActivationFn, LayerIdx, Op, Stage, ValueId};

/// The queries and the gates of what q_proj gave.
pub(super) fn split(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    q: ValueId,
    config: &AttentionConfig,
) -> Result<[ValueId; 2], LowerError> {
    let (heads, len) = (config.num_attention_heads, config.head_dim);
    let mut parts = [q; 2];
    for (i, (part, name)) in parts.iter_mut().zip(["q_proj_queries", "q_proj_gate"]).enumerate() {
        let op = Op::Slice { heads, start: i * len, len };
        *part = only(l.graph.push(Some(layer), name, op, &[q])?);
    }
    Ok(parts)
}

/// Appends attention · sigmoid(gate).
pub(super) fn apply(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    gate: ValueId,
    attended: ValueId,
) -> Result<ValueId, LowerError> {
    let op = Op::GatedAct { activation: ActivationFn::Sigmoid };
    let gated = l.graph.push(Some(layer), "attn_gate", op, &[gate, attended])?;
    l.graph.tap(Some(layer), Stage::AttnGate, &[gated[0]])?;
    l.graph.tap(Some(layer), Stage::AttentionGated, &[gated[1]])?;
    Ok(gated[1])
}
