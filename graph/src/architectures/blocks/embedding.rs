//! Token ids → rows of the embedding table [T, D].

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
    let x = only(l.graph.push(None, "embed_tokens", Op::Embed { table }, &[tokens])?);
    l.graph.tap(None, Stage::Embedding, &[x])?;
    Ok(x)
}
