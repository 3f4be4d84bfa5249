//! Beside stage 6: the tokens of a text → perplexity, or the divergence from another run's logits.
//!
//! Input: a session whose executable gives a row of logits for every token, and the whole text's tokens. Output: a
//! [`Perplexity`], and with a base a [`Divergence`]. The chunking is llama.cpp's, so that the numbers can be set beside
//! its: the text's tokens are cut into chunks of n tokens that do not overlap (a shorter rest is dropped), each is
//! evaluated from an empty context, and in each the tokens n/2+1 .. n−1 are scored, each by the logits of the token
//! before it. Where the model begins texts with BOS, BOS stands in the place of each chunk's first token.
//!
//! Absent on purpose: reading files of text, tokenizing, printing.

mod divergence;
mod logits_file;
mod statistics;

pub use divergence::{Divergence, DivergenceSum};
pub use logits_file::{LogitsFileError, LogitsReader, LogitsWriter};
pub use statistics::{Estimate, Mean, log_softmax};

use moe_run_graph::ids::TokenId;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::session::{LogitsRows, Session};
use serde::Serialize;
use std::ops::Range;

/// A text that cannot be scored, or a run that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PerplexityError {
    /// Chunks in which nothing would be scored.
    #[error("chunks of {chunk_tokens} tokens leave nothing to score: wanted 4 or more")]
    ChunkTooShort {
        /// Tokens of a chunk.
        chunk_tokens: usize,
    },
    /// Not enough text.
    #[error(
        "the text has {found_tokens} tokens, wanted {wanted_tokens} or more (two chunks of the context); give a longer \
         text or a smaller --ctx-size"
    )]
    TextTooShort {
        /// Tokens of the text.
        found_tokens: usize,
        /// Tokens of two chunks.
        wanted_tokens: usize,
    },
    /// A logit that is no number.
    #[error(
        "chunk {chunk}, position {position}: the logits hold a value that is not finite; `moe-run trace` names the first \
         operation that made one"
    )]
    NotFinite {
        /// The chunk, from 0.
        chunk: usize,
        /// The position in it.
        position: usize,
    },
    /// The step itself.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A file of saved logits.
    #[error(transparent)]
    LogitsFile(#[from] LogitsFileError),
}

/// A text's tokens, cut into the chunks that are scored.
#[derive(Debug, Clone)]
pub struct Chunks {
    tokens: Vec<TokenId>,
    chunk_tokens: usize,
    leading_bos: Option<TokenId>,
}

impl Chunks {
    /// Cuts `tokens` into chunks of `chunk_tokens`, `max_chunks` at most. `leading_bos` replaces the first token of each
    /// chunk when it is evaluated, and never when it is scored.
    ///
    /// # Errors
    /// [`PerplexityError::ChunkTooShort`], [`PerplexityError::TextTooShort`].
    pub fn new(
        mut tokens: Vec<TokenId>,
        chunk_tokens: usize,
        max_chunks: Option<usize>,
        leading_bos: Option<TokenId>,
    ) -> Result<Chunks, PerplexityError> {
        if chunk_tokens < 4 {
            return Err(PerplexityError::ChunkTooShort { chunk_tokens });
        }
        let wanted_tokens = chunk_tokens.saturating_mul(2);
        if tokens.len() < wanted_tokens {
            return Err(PerplexityError::TextTooShort { found_tokens: tokens.len(), wanted_tokens });
        }
        let chunks = (tokens.len() / chunk_tokens).min(max_chunks.unwrap_or(usize::MAX));
        tokens.truncate(chunks * chunk_tokens);
        Ok(Chunks { tokens, chunk_tokens, leading_bos })
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len() / self.chunk_tokens
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn chunk_tokens(&self) -> usize {
        self.chunk_tokens
    }

    /// The text's tokens, as they are scored.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The positions in a chunk whose logits score the token behind them: n/2 .. n−1.
    #[must_use]
    pub fn scored_positions(&self) -> Range<usize> {
        self.chunk_tokens / 2..self.chunk_tokens - 1
    }

    /// A chunk's tokens as they are scored.
    fn chunk(&self, index: usize) -> &[TokenId] {
        &self.tokens[index * self.chunk_tokens..(index + 1) * self.chunk_tokens]
    }

    /// A chunk's tokens as they are evaluated.
    #[must_use]
    pub fn evaluated(&self, index: usize) -> Vec<TokenId> {
        let mut tokens = self.chunk(index).to_vec();
        if let Some(bos) = self.leading_bos {
            tokens[0] = bos;
        }
        tokens
    }
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp of the mean of −ln p(token).
    pub perplexity: f64,
    /// Its standard error.
    pub stderr: f64,
    /// Chunks scored.
    pub chunks: usize,
    /// Tokens scored.
    pub scored_tokens: usize,
}

impl Perplexity {
    /// From the mean of −ln p and how many chunks it was taken over. The error is carried through exp to first order.
    #[must_use]
    pub fn new(nll: &Mean, chunks: usize) -> Perplexity {
        let Estimate { mean, stderr } = nll.estimate();
        let perplexity = mean.exp();
        Perplexity { perplexity, stderr: perplexity * stderr, chunks, scored_tokens: nll.count() }
    }
}

/// What a run does with each row of logits beside scoring it.
#[derive(Debug, Default)]
pub struct Companions<'a> {
    /// Rows are written here.
    pub save: Option<&'a mut LogitsWriter>,
    /// Rows are compared with those of another run.
    pub against: Option<&'a mut LogitsReader>,
}

/// Scores every chunk. After each, `each` is told the result so far, and may stop the run with an error.
///
/// # Errors
/// [`PerplexityError`]; a session whose context is smaller than a chunk is [`BackendError::ContextFull`].
pub fn perplexity(
    session: &mut Session,
    chunks: &Chunks,
    mut companions: Companions<'_>,
    mut each: impl FnMut(&Perplexity, Option<&DivergenceSum>) -> Result<(), BackendError>,
) -> Result<(Perplexity, Option<Divergence>), PerplexityError> {
    let mut nll = Mean::default();
    let mut divergence = companions.against.as_ref().map(|_| DivergenceSum::default());
    let (mut row, mut log_probs) = (Vec::new(), Vec::new());
    let mut base_row = Vec::new();
    for index in 0..chunks.len() {
        let (evaluated, scored) = (chunks.evaluated(index), chunks.chunk(index));
        let positions = chunks.scored_positions();
        session.truncate(0)?;
        session.feed(&evaluated[..positions.start], LogitsRows::Last, None, |_, _| Ok(()))?;
        let mut failed = None;
        let fed = session.feed(&evaluated[positions.clone()], LogitsRows::All, None, |executable, range| {
            for (r, position) in range.enumerate() {
                executable.logits(r, &mut row)?;
                let result = score_row(
                    RowAt { chunk: index, position, target: scored[position + 1] },
                    &row,
                    &mut log_probs,
                    &mut base_row,
                    &mut companions,
                    &mut nll,
                    divergence.as_mut(),
                );
                if let Err(error) = result {
                    let stop = BackendError::Input("scoring stopped".into());
                    failed = Some(error);
                    return Err(stop);
                }
            }
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        fed?;
        each(&Perplexity::new(&nll, index + 1), divergence.as_ref())?;
    }
    Ok((Perplexity::new(&nll, chunks.len()), divergence.map(|d| d.finish())))
}

/// Which row of logits, and the token that it is to predict.
struct RowAt {
    chunk: usize,
    position: usize,
    target: TokenId,
}

fn score_row(
    at: RowAt,
    row: &[f32],
    log_probs: &mut Vec<f64>,
    base_row: &mut Vec<f32>,
    companions: &mut Companions<'_>,
    nll: &mut Mean,
    divergence: Option<&mut DivergenceSum>,
) -> Result<(), PerplexityError> {
    let not_finite = || PerplexityError::NotFinite { chunk: at.chunk, position: at.position };
    if !row.iter().all(|x| x.is_finite()) {
        return Err(not_finite());
    }
    log_softmax(row, log_probs);
    let target = at.target.index();
    let log_p = *log_probs.get(target).ok_or_else(|| {
        BackendError::Input(format!("token {target} of a vocabulary of {}", log_probs.len()))
    })?;
    nll.push(-log_p);
    if let Some(writer) = companions.save.as_mut() {
        writer.row(row)?;
    }
    if let (Some(reader), Some(divergence)) = (companions.against.as_mut(), divergence) {
        reader.row(base_row)?;
        divergence.push(base_row, log_probs, target);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: u32) -> Vec<TokenId> {
        (0..n).map(TokenId).collect()
    }

    #[test]
    fn chunks_do_not_overlap_and_the_rest_is_dropped() {
        let chunks = Chunks::new(ids(35), 8, None, None).expect("long enough");
        assert_eq!(chunks.len(), 4);
        assert_eq!(chunks.chunk(3), &ids(32)[24..]);
        assert_eq!(chunks.scored_positions(), 4..7);
        assert_eq!(Chunks::new(ids(35), 8, Some(2), None).expect("long enough").len(), 2);
    }

    #[test]
    fn odd_chunks_score_from_the_half_rounded_down() {
        let chunks = Chunks::new(ids(18), 9, None, None).expect("long enough");
        assert_eq!(chunks.scored_positions(), 4..8);
    }

    #[test]
    fn bos_is_evaluated_and_not_scored() {
        let chunks = Chunks::new(ids(16), 8, None, Some(TokenId(99))).expect("long enough");
        assert_eq!(chunks.evaluated(1)[..2], [TokenId(99), TokenId(9)]);
        assert_eq!(chunks.chunk(1)[..2], [TokenId(8), TokenId(9)]);
    }

    #[test]
    fn too_little_text_is_refused_with_the_numbers() {
        let error = Chunks::new(ids(15), 8, None, None).expect_err("one chunk and a half");
        assert!(error.to_string().contains("15 tokens, wanted 16"), "{error}");
        assert!(matches!(Chunks::new(ids(9), 3, None, None), Err(PerplexityError::ChunkTooShort { .. })));
    }
}
