//! Token ids → rows of the embedding table [T, D], times the factor that some models put on them.

use crate::architectures::{LowerError, Lowering, only};
use crate::gguf::keys;
use crate::ir::{Op, Stage, ValueId};

/// Appends the embedding.
///
/// # Errors
/// [`LowerError`] for a missing or misshapen table.
pub fn lower(l: &mut Lowering<'_>) -> Result<ValueId, LowerError> {
    let table = l.matrix(keys::tensor::TOKEN_EMBD, l.config.vocab_size, l.config.hidden_size)?;
    let tokens = l.graph.inputs.tokens;
    let op = Op::Embed { table, scale: l.config.embedding_scale };
    let x = only(l.graph.push(None, "embed_tokens", op, &[tokens])?);
    l.graph.tap(None, Stage::Embedding, &[x])?;
    Ok(x)
}
