//! The residual stream → logits [R, vocab] of the rows that the step asks for.

use super::norm;
use crate::architectures::{LowerError, Lowering, only};
use crate::gguf::keys;
use crate::ir::{Op, Stage, ValueId};

/// Appends row choice, final norm and lm_head, and makes the logits the graph's output. Where the file has no lm_head,
/// the embedding table serves (tied weights). Where it has no `final_norm`, the usual name serves.
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn lower(l: &mut Lowering<'_>, x: ValueId, final_norm: &str) -> Result<(), LowerError> {
    let (vocab_size, hidden_size) = (l.config.vocab_size, l.config.hidden_size);
    let rows = l.graph.inputs.logits_rows;
    let x = only(l.graph.push(None, "logits_rows", Op::GetRows, &[x, rows])?);
    let final_norm = if l.has(final_norm) { final_norm } else { keys::tensor::OUTPUT_NORM };
    let x = norm::lower(l, None, "norm", final_norm, x, 1)?;
    l.graph.tap(None, Stage::FinalNorm, &[x])?;
    let name = if l.has(keys::tensor::OUTPUT) { keys::tensor::OUTPUT } else { keys::tensor::TOKEN_EMBD };
    let weight = l.matrix(name, vocab_size, hidden_size)?;
    let op = Op::MatMul { weight, bias: None, scale: l.config.logits_scale };
    let logits = only(l.graph.push(None, "lm_head", op, &[x])?);
    l.graph.tap(None, Stage::LmHead, &[logits])?;
    l.graph.outputs.push(logits);
    Ok(())
}
