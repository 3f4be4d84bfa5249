//! Stage 6: tokens → logits, with the only state between tokens.
//!
//! Input: an executable and tokens. Output: the logits of the rows that were asked for. The session owns the KV state
//! and knows which tokens it holds, so that a prompt that begins like the last one is only evaluated from where they
//! part. A full context is an error: nothing wraps or slides away silently.
//!
//! Greedy generation on a device need not wait for its tokens: [`Session::queue_next`] queues the step of the token that
//! the device is about to choose, and [`Session::argmax`] then reads that token while the step runs.

use crate::error::BackendError;
use crate::executable::{
    BLOCK_TOKENS, Executable, ExecutableInfo, Observer, SequenceStates, State, StepInput, StepSequence,
    StepTokens, blocks_in_order,
};
use crate::rings::Held;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Rewind;
use std::ops::Range;

/// Which rows of logits a prompt's evaluation computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsRows {
    /// The last token's: what generation needs.
    Last,
    /// Every token's: what perplexity, saved tensors and parity need. The executable must have been compiled with
    /// `max_logits_rows` of at least its micro-batch.
    All,
}

/// Tokens at a prompt's end behind which no states are kept.
const CHECKPOINT_SLACK_TOKENS: usize = 16;
/// Lengths at which a sequence's own states are kept, each as large as these states.
pub(crate) const MAX_CHECKPOINTS: usize = 2;

/// The border of blocks, in a prompt of so many tokens, at which a sequence's own states are kept: the last that the next prompt
/// may well have in common, for a template ends a prompt otherwise than it repeats it later.
pub(crate) fn checkpoint_border(prompt_tokens: usize) -> usize {
    prompt_tokens.saturating_sub(CHECKPOINT_SLACK_TOKENS) / BLOCK_TOKENS * BLOCK_TOKENS
}

/// Refuses to go back where a state cannot: to anywhere but the beginning, where every state begins anew.
pub(crate) fn check_rewind(
    rewind: Rewind,
    held_tokens: usize,
    wanted_tokens: usize,
) -> Result<(), BackendError> {
    match rewind {
        Rewind::Checkpoint if (1..held_tokens).contains(&wanted_tokens) => {
            Err(BackendError::Rewind { held_tokens, wanted_tokens })
        }
        Rewind::Checkpoint | Rewind::Free => Ok(()),
    }
}

/// A conversation with one executable.
pub struct Session {
    executable: Box<dyn Executable>,
    state: Box<dyn State>,
    /// All blocks of the state, in order: its slots are positions.
    blocks: Box<[u32]>,
    tokens: Vec<TokenId>,
    last_row: usize,
    ready: Ready,
    /// Which positions are still held by states that are rings.
    held: Held,
    /// Borders of blocks in the last prompts, ascending, which the next one may well have in common: what rings hold for them is
    /// kept before it is written over.
    borders: Vec<usize>,
    /// What the sequence's own states held behind the first so many tokens, the longest last: where they can go back to.
    checkpoints: Vec<(usize, SequenceStates)>,
}

/// What is known of the token behind those that the state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Nothing,
    /// The last step's logits.
    Logits,
    /// The step of the best next token is queued, in the place of those logits; the token once it was read.
    Queued(Option<TokenId>),
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("info", self.info()).field("tokens", &self.tokens.len()).finish()
    }
}

impl Session {
    /// Allocates the state that the executable's graph declares.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub fn new(executable: Box<dyn Executable>) -> Result<Session, BackendError> {
        let state = executable.new_state()?;
        let blocks = blocks_in_order(state.capacity_tokens());
        Ok(Session {
            executable,
            state,
            blocks,
            tokens: Vec::new(),
            last_row: 0,
            ready: Ready::Nothing,
            held: Held::default(),
            borders: Vec::with_capacity(MAX_CHECKPOINTS),
            checkpoints: Vec::new(),
        })
    }

    /// What runs it.
    #[must_use]
    pub fn info(&self) -> &ExecutableInfo {
        self.executable.info()
    }

    /// What runs it.
    pub fn executable(&mut self) -> &mut dyn Executable {
        self.executable.as_mut()
    }

    /// The tokens that the state holds.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Positions that fit.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.state.capacity_tokens()
    }

    /// Memory of the KV state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.state.size_bytes()
    }

    /// How this model's state goes back, by its graph's declaration.
    fn rewind(&self) -> Rewind {
        self.executable.plan(1).graph.rewind()
    }

    /// Whether the states can go back to this length without anything that was kept.
    fn reaches(&self, len_tokens: usize) -> bool {
        check_rewind(self.rewind(), self.tokens.len(), len_tokens).is_ok() && self.held.reaches(len_tokens)
    }

    /// Forgets everything from position `len_tokens` on. Every state begins anew at position 0, so that to forget everything
    /// is always possible.
    ///
    /// # Errors
    /// [`BackendError::Rewind`] where a state cannot go back to that length.
    pub fn truncate(&mut self, len_tokens: usize) -> Result<(), BackendError> {
        let held_tokens = self.tokens.len();
        if len_tokens >= held_tokens {
            return Ok(());
        }
        if !self.reaches(len_tokens) {
            let Some((_, kept)) = self.checkpoints.iter().find(|(len, _)| *len == len_tokens) else {
                return Err(BackendError::Rewind { held_tokens, wanted_tokens: len_tokens });
            };
            self.executable.restore_sequence(self.state.as_mut(), 0, len_tokens, kept)?;
            self.held = Held::from(len_tokens);
        }
        if len_tokens == 0 {
            self.held = Held::default();
        }
        self.checkpoints.retain(|(len, _)| *len <= len_tokens);
        self.borders.retain(|border| *border <= len_tokens);
        self.tokens.truncate(len_tokens);
        self.ready = Ready::Nothing;
        Ok(())
    }

    /// Lets [`Session::truncate`] go back to what is held now, whatever follows, until so much more was kept that it must go: two
    /// prompts. A session whose states go back freely needs nothing.
    ///
    /// # Errors
    /// What reading a state reports.
    pub fn mark(&mut self) -> Result<(), BackendError> {
        let len_tokens = self.tokens.len();
        let is_kept = self.checkpoints.iter().any(|(len, _)| *len == len_tokens);
        if len_tokens == 0 || is_kept || self.borders.contains(&len_tokens) {
            return Ok(());
        }
        match self.rewind() {
            Rewind::Checkpoint => self.keep_states(len_tokens),
            Rewind::Free => {
                self.add_border(len_tokens);
                Ok(())
            }
        }
    }

    /// What rings hold for a border is kept before it is written over; of two borders at most.
    fn add_border(&mut self, border: usize) {
        if self.state.rings().iter().all(Option::is_none) {
            return;
        }
        if self.borders.len() == MAX_CHECKPOINTS {
            self.borders.remove(0);
        }
        self.borders.push(border);
    }

    /// Keeps what the state and `prompt` have in common and returns its length: the tokens that need no evaluation.
    /// At least one token of the prompt is left, so that there are logits to sample from. Where a sequence has states of its
    /// own it keeps all that it holds, if the prompt goes on from there, or goes back to the last length in common at which
    /// they were kept: the beginning, or the borders of blocks at which [`Session::feed`] keeps them. So it does where states
    /// of a window's size no longer hold what the token behind the common length sees.
    ///
    /// # Errors
    /// As [`Session::truncate`].
    pub fn reuse_prefix(&mut self, prompt: &[TokenId]) -> Result<usize, BackendError> {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let mut keep = common.min(prompt.len().saturating_sub(1));
        if keep < self.tokens.len() && !self.reaches(keep) {
            let kept = self.checkpoints.iter().map(|(len, _)| *len).filter(|len| *len <= keep);
            keep = kept.max().unwrap_or(0);
        }
        self.truncate(keep)?;
        Ok(keep)
    }

    /// Evaluates tokens behind those that the state holds, in micro-batches. After each, `each` sees the executable
    /// (whose rows of logits are those of the range's positions, or of its last) and may stop with an error.
    ///
    /// # Errors
    /// [`BackendError::ContextFull`] before anything is run if the tokens do not fit; what a step or `each` reports.
    /// After an error the state holds the micro-batches that were complete; nothing, where it cannot go back.
    pub fn feed(
        &mut self,
        tokens: &[TokenId],
        rows: LogitsRows,
        mut observer: Option<&mut dyn Observer>,
        mut each: impl FnMut(&mut dyn Executable, Range<usize>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let (start, capacity_tokens) = (self.tokens.len(), self.capacity_tokens());
        let wanted_tokens = start + tokens.len();
        if wanted_tokens > capacity_tokens {
            return Err(BackendError::ContextFull { wanted_tokens, capacity_tokens });
        }
        self.ready = Ready::Nothing;
        let micro_batch = self.info().micro_batch;
        let border = checkpoint_border(wanted_tokens);
        let is_new = rows == LogitsRows::Last && border > start;
        let keeps = is_new && self.rewind() == Rewind::Checkpoint;
        if is_new && !keeps {
            self.add_border(border);
        }
        let (before, behind) = tokens.split_at(if keeps { border - start } else { 0 });
        let chunks: Vec<&[TokenId]> = before.chunks(micro_batch).chain(behind.chunks(micro_batch)).collect();
        let steps = chunks.len();
        for (i, chunk) in chunks.into_iter().enumerate() {
            let first = self.tokens.len();
            if keeps && first == border {
                self.keep_states(border)?;
            }
            self.write(first + chunk.len())?;
            let positions: Vec<u32> = (first..first + chunk.len()).map(|p| p as u32).collect();
            let logits_rows: Vec<u32> = match rows {
                LogitsRows::All => (0..chunk.len() as u32).collect(),
                LogitsRows::Last if i + 1 == steps => vec![chunk.len() as u32 - 1],
                LogitsRows::Last => Vec::new(),
            };
            let input = StepInput {
                tokens: StepTokens::Host(chunk),
                positions: &positions,
                sequence: &vec![0; chunk.len()],
                kv_slots: &positions,
                sequences: &[StepSequence { blocks: &self.blocks, place: 0 }],
                logits_rows: &logits_rows,
            };
            let observer: Option<&mut dyn Observer> = match observer.as_mut() {
                Some(observer) => Some(&mut **observer),
                None => None,
            };
            if let Err(error) = self.executable.step(self.state.as_mut(), &input, observer) {
                self.forget_what_failed();
                return Err(error);
            }
            self.tokens.extend_from_slice(chunk);
            self.last_row = logits_rows.len().saturating_sub(1);
            self.ready = if logits_rows.is_empty() { Ready::Nothing } else { Ready::Logits };
            each(self.executable.as_mut(), first..first + chunk.len())?;
        }
        Ok(())
    }

    /// Evaluates one token behind those that the state holds; no allocation. Where [`Session::queue_next`] has queued this
    /// token's step already, that is taken.
    ///
    /// # Errors
    /// [`BackendError::ContextFull`], or what the step reports.
    pub fn decode(
        &mut self,
        token: TokenId,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let is_queued =
            observer.is_none() && matches!(self.ready, Ready::Queued(_)) && self.argmax()? == token;
        if !is_queued {
            self.step(StepTokens::Host(&[token]), observer)?;
        }
        self.tokens.push(token);
        self.last_row = 0;
        self.ready = Ready::Logits;
        Ok(())
    }

    /// A step of one token behind those that the state holds.
    fn step(
        &mut self,
        tokens: StepTokens<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let position = self.tokens.len() as u32;
        let capacity_tokens = self.capacity_tokens();
        if self.tokens.len() >= capacity_tokens {
            return Err(BackendError::ContextFull { wanted_tokens: self.tokens.len() + 1, capacity_tokens });
        }
        self.write(self.tokens.len() + 1)?;
        let input = StepInput {
            tokens,
            positions: &[position],
            sequence: &[0],
            kv_slots: &[position],
            sequences: &[StepSequence { blocks: &self.blocks, place: 0 }],
            logits_rows: &[0],
        };
        self.ready = Ready::Nothing;
        let done = self.executable.step(self.state.as_mut(), &input, observer);
        if done.is_err() {
            self.forget_what_failed();
        }
        done
    }

    /// A step is about to write positions up to `end`: what it would write over of a border's window is kept before.
    fn write(&mut self, end: usize) -> Result<(), BackendError> {
        let mut after = self.held;
        after.write(self.state.rings(), end);
        while let Some(border) = self.borders.first().copied()
            && border <= self.tokens.len()
            && !after.reaches(border)
        {
            if self.held.reaches(border) {
                self.keep_states(border)?;
            }
            self.borders.remove(0);
        }
        self.held = after;
        Ok(())
    }

    /// Keeps what the sequence's own states hold for its first so many tokens.
    fn keep_states(&mut self, len_tokens: usize) -> Result<(), BackendError> {
        let kept = self.executable.read_sequence(self.state.as_mut(), 0, len_tokens)?;
        if kept.is_empty() {
            return Ok(());
        }
        self.checkpoints.retain(|(len, _)| *len != len_tokens);
        if self.checkpoints.len() == MAX_CHECKPOINTS {
            self.checkpoints.remove(0);
        }
        self.checkpoints.push((len_tokens, kept));
        Ok(())
    }

    /// A step that failed has changed the state from its first position on: what cannot go back is lost whole.
    fn forget_what_failed(&mut self) {
        if self.rewind() == Rewind::Checkpoint {
            self.tokens.clear();
            self.checkpoints.clear();
        }
    }

    /// Queues the step of the best next token before that token is known here, where the executable queues its steps and
    /// the context has room; says whether it did. Behind it [`Session::argmax`] gives that token and [`Session::decode`]
    /// with it costs nothing more, but [`Session::logits`] are gone until then.
    ///
    /// # Errors
    /// As [`Session::argmax`], and what the step reports.
    pub fn queue_next(&mut self) -> Result<bool, BackendError> {
        if matches!(self.ready, Ready::Queued(_)) {
            return Ok(true);
        }
        self.check_logits()?;
        // A queued step whose token is then not taken must be undone: only where every state goes back freely.
        let is_undone = self.rewind() == Rewind::Free;
        if !is_undone || !self.executable.queues_steps() || self.tokens.len() >= self.capacity_tokens() {
            return Ok(false);
        }
        self.step(StepTokens::Argmax { row: self.last_row }, None)?;
        self.ready = Ready::Queued(None);
        Ok(true)
    }

    /// What a copy within the device's memory reads and writes a second, where the backend can measure it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn copy_bytes_per_second(&mut self) -> Result<Option<f64>, BackendError> {
        self.executable.copy_bytes_per_second()
    }

    /// Waits until everything that was evaluated is done.
    ///
    /// # Errors
    /// [`BackendError::Device`] if it failed.
    pub fn wait(&mut self) -> Result<(), BackendError> {
        self.executable.wait()
    }

    /// The logits of the last token evaluated.
    ///
    /// # Errors
    /// [`BackendError::Input`] if nothing has been evaluated since the state was cut back.
    pub fn logits(&mut self, out: &mut Vec<f32>) -> Result<(), BackendError> {
        self.check_logits()?;
        self.executable.logits(self.last_row, out)
    }

    /// The logits of the last token evaluated as a sampler may see them: minus infinity for rows that no token has.
    ///
    /// # Errors
    /// As [`Session::logits`].
    pub fn choosable_logits(&mut self, out: &mut Vec<f32>) -> Result<(), BackendError> {
        self.logits(out)?;
        let choosable = self.executable.choosable(out.len());
        out[choosable..].fill(f32::NEG_INFINITY);
        Ok(())
    }

    /// The best next token, chosen on the device where it can be.
    ///
    /// # Errors
    /// As [`Session::logits`]; a NaN among the logits.
    pub fn argmax(&mut self) -> Result<TokenId, BackendError> {
        match self.ready {
            Ready::Queued(Some(token)) => Ok(token),
            Ready::Queued(None) => {
                let token = self.executable.taken()?;
                self.ready = Ready::Queued(Some(token));
                Ok(token)
            }
            Ready::Nothing | Ready::Logits => {
                self.check_logits()?;
                self.executable.argmax(self.last_row)
            }
        }
    }

    /// The best `count` next tokens with their logits, chosen on the device where they can be; at most
    /// [`MAX_CANDIDATES`](crate::executable::MAX_CANDIDATES).
    ///
    /// # Errors
    /// As [`Session::argmax`].
    pub fn candidates(&mut self, count: usize, out: &mut Vec<(TokenId, f32)>) -> Result<(), BackendError> {
        self.check_logits()?;
        self.executable.candidates(self.last_row, count, out)
    }

    fn check_logits(&self) -> Result<(), BackendError> {
        match self.ready {
            Ready::Logits => Ok(()),
            Ready::Nothing => Err(BackendError::Input("no logits: evaluate a token first".into())),
            Ready::Queued(_) => Err(BackendError::Input(
                "the next token's step is queued in the place of these logits: decode its token first".into(),
            )),
        }
    }
}
