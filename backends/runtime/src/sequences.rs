//! Several sequences on one executable: which blocks of the state's pool each has, and steps that mix their rows.
//!
//! Input: tokens by sequence. Output: rows of logits. What a row holds does not depend on which others share its step. The
//! pool is handed out in blocks of [`BLOCK_TOKENS`] as sequences grow; a step that does not fit changes nothing. Full blocks that
//! a sequence shares ([`Sequences::share`]) serve any later one that begins with the same tokens ([`Sequences::open_with`]); where
//! a sequence has states of its own, or rings of a window's size, up to the last border at which those were kept
//! ([`Sequences::keep_states`]).
//! Deliberately absent: when which sequence runs, which is a scheduler's ([`crate::engine`]).

mod cache_file;
mod kept;
mod taps;

use crate::blocks::{Blocks, Key};
use crate::error::BackendError;
use crate::executable::{
    BLOCK_TOKENS, Executable, ExecutableInfo, KeptRows, KvType, Observer, State, StepInput, StepSequence,
    StepTokens,
};
use crate::rings::Held;
use crate::session::{MAX_CHECKPOINTS, check_rewind};
use kept::KeptStates;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Rewind, StateDecl, StateId};

pub use cache_file::CacheFileError;
use taps::Tapped;
pub use taps::{Experts, TappedRows, Taps, has_rows, last_experts};

/// A sequence of [`Sequences`], until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(usize);

/// What a sequence is given in a step.
#[derive(Debug, Clone, Copy)]
pub struct Feed<'a> {
    /// Whose.
    pub sequence: SequenceId,
    /// Its next tokens.
    pub tokens: &'a [TokenId],
    /// Whether the last token's logits are wanted.
    pub wants_logits: bool,
}

/// What others have shared of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPrefix {
    /// Tokens of its beginning.
    pub tokens: usize,
    /// Of their blocks, those that nobody has: they count among [`Sequences::free_tokens`].
    pub idle_blocks: usize,
    /// Tokens of its beginning whose blocks are there, while what stands beside them was not kept behind so many.
    pub in_blocks: usize,
}

/// Blocks that hold the beginning of a prompt.
#[derive(Default)]
struct Found {
    blocks: Vec<u32>,
    /// How many of them nobody has.
    idle_blocks: usize,
    keys: Vec<Key>,
    /// Tokens in these and those behind them that cannot be taken up.
    in_blocks: usize,
}

#[derive(Default)]
struct Sequence {
    tokens: Vec<TokenId>,
    blocks: Vec<u32>,
    /// Which positions are still held by states that are rings.
    held: Held,
    /// Of its first blocks, those that others may have, too: what the last of them is found by.
    shared: Vec<Key>,
    /// Its blocks are not told apart from another's by their keys: they are shared no further.
    ends_sharing: bool,
}

/// Sequences that share an executable and a pool of state.
pub struct Sequences {
    executable: Box<dyn Executable>,
    state: Box<dyn State>,
    /// By place; `None` where nobody is.
    sequences: Vec<Option<Sequence>>,
    blocks: Blocks,
    kept: KeptStates,
    tapped: Tapped,
    /// Rows of logits of the last step.
    logits_rows: usize,
}

impl std::fmt::Debug for Sequences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.sequences.iter().flatten().count();
        f.debug_struct("Sequences").field("info", self.info()).field("open", &open).finish()
    }
}

impl Sequences {
    /// A pool for `tokens` tokens of up to `max_sequences` sequences; each holds at most the compiled context size.
    ///
    /// # Errors
    /// As [`Executable::new_pool`].
    pub fn new(
        executable: Box<dyn Executable>,
        tokens: usize,
        max_sequences: usize,
    ) -> Result<Sequences, BackendError> {
        let state = executable.new_pool(tokens, max_sequences)?;
        // Whole blocks only, for any of them may be anybody's.
        let blocks = Blocks::new(state.capacity_tokens() / BLOCK_TOKENS);
        let sequences = (0..max_sequences).map(|_| None).collect();
        let tapped = Tapped::default();
        // Of a window's size also that behind an answer, which nothing has to stop for.
        let has_rings = state.rings().iter().any(Option::is_some);
        let kept = KeptStates::new((MAX_CHECKPOINTS + usize::from(has_rings)) * max_sequences);
        Ok(Sequences { executable, state, sequences, blocks, kept, tapped, logits_rows: 0 })
    }

    /// What runs them.
    #[must_use]
    pub fn info(&self) -> &ExecutableInfo {
        self.executable.info()
    }

    /// What runs them.
    pub fn executable(&mut self) -> &mut dyn Executable {
        self.executable.as_mut()
    }

    /// Memory of the states.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.state.size_bytes()
    }

    /// Tokens that fit in the blocks that nobody has.
    #[must_use]
    pub fn free_tokens(&self) -> usize {
        self.blocks.available() * BLOCK_TOKENS
    }

    /// Tokens that fit in all blocks.
    #[must_use]
    pub fn pool_tokens(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }

    /// Sequences that there are places for.
    #[must_use]
    pub fn max_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens that one sequence may hold.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.executable.plan(1).max_sizes.cached
    }

    /// Blocks that a sequence has.
    #[must_use]
    pub fn blocks_of(&self, id: SequenceId) -> usize {
        self.sequences.get(id.0).and_then(Option::as_ref).map_or(0, |s| s.blocks.len())
    }

    /// What [`Sequences::open_with`] would find for a prompt now.
    #[must_use]
    pub fn shared_prefix(&self, prompt: &[TokenId]) -> SharedPrefix {
        let Found { blocks, idle_blocks, in_blocks, keys: _ } = self.find_prefix(prompt);
        SharedPrefix { tokens: blocks.len() * BLOCK_TOKENS, idle_blocks, in_blocks }
    }

    /// Whether a beginning that one sequence has computed can serve another: some backends give each sequence a state of its own.
    #[must_use]
    pub fn shares_blocks(&self) -> bool {
        self.state.shares_blocks()
    }

    /// Whether a beginning is shared only up to where [`Sequences::keep_states`] was called: a state of a whole sequence stands
    /// behind its last token alone, and a ring holds a window of them.
    #[must_use]
    pub fn shares_kept_states(&self) -> bool {
        self.shares_blocks() && (self.rewind() == Rewind::Checkpoint || self.has_rings())
    }

    /// Whether states are kept only where a sequence ends: behind a step that goes as far as a border.
    #[must_use]
    pub fn keeps_at_ends(&self) -> bool {
        self.rewind() == Rewind::Checkpoint
    }

    fn has_rings(&self) -> bool {
        self.state.rings().iter().any(Option::is_some)
    }

    /// Memory that states kept by [`Sequences::keep_states`] may take; 0 where none are.
    #[must_use]
    pub fn kept_states_bytes(&self) -> u64 {
        if !self.shares_kept_states() {
            return 0;
        }
        let border = self.capacity_tokens() / BLOCK_TOKENS * BLOCK_TOKENS;
        let bytes: usize = self.kept_each(border).iter().map(|(.., bytes)| bytes).sum();
        (bytes as u64).saturating_mul(self.kept.most() as u64)
    }

    /// What is kept of a sequence of so many tokens: its own states and rings, how their rows are stored, and how many bytes
    /// they are.
    fn kept_each(&self, len_tokens: usize) -> Vec<(StateId, KvType, usize)> {
        let graph = &self.executable.plan(1).graph;
        let of = |state: &StateDecl| {
            let ring = self.state.rings().get(state.id.index()).copied().flatten();
            let (kv_type, rows) = match ring {
                Some(ring) => (self.info().kv_type, ring.needed(len_tokens).len()),
                None if !state.is_per_token() => (KvType::F32, 1),
                None => return None,
            };
            Some((state.id, kv_type, KeptRows::bytes_of(kv_type, rows * state.row_elems())))
        };
        graph.states.iter().filter_map(of).collect()
    }

    /// What holds the beginning of a prompt. At least one token is left, so that there are logits to choose from.
    fn find_prefix(&self, prompt: &[TokenId]) -> Found {
        let (mut found, mut keys) = (Vec::new(), Vec::new());
        if !self.shares_blocks() {
            return Found::default();
        }
        let mut parent = Key::default();
        let usable = &prompt[..prompt.len().saturating_sub(1)];
        for tokens in usable.chunks_exact(BLOCK_TOKENS) {
            let Some(block) = self.blocks.find(parent, tokens) else { break };
            parent = parent.of(tokens);
            found.push(block);
            keys.push(parent);
        }
        let in_blocks = found.len() * BLOCK_TOKENS;
        if self.shares_kept_states() {
            let is_kept = |blocks: &usize| self.kept.has(keys[blocks - 1], &prompt[..blocks * BLOCK_TOKENS]);
            keys.truncate((1..=keys.len()).rev().find(is_kept).unwrap_or(0));
            found.truncate(keys.len());
        }
        let idle_blocks = found.iter().filter(|(_, is_idle)| *is_idle).count();
        let blocks = found.into_iter().map(|(block, _)| block).collect();
        Found { blocks, idle_blocks, keys, in_blocks }
    }

    /// A new sequence that holds as much of a prompt's beginning as others have shared; how much, [`Sequences::tokens`] says.
    ///
    /// # Errors
    /// As [`Sequences::open`]; what putting back a state reports.
    pub fn open_with(&mut self, prompt: &[TokenId]) -> Result<SequenceId, BackendError> {
        let id = self.open()?;
        let Found { blocks, keys: shared, .. } = self.find_prefix(prompt);
        let tokens = &prompt[..blocks.len() * BLOCK_TOKENS];
        let mut held = Held::default();
        if self.shares_kept_states()
            && let Some(kept) = shared.last().and_then(|key| self.kept.get(*key, tokens))
        {
            let restored = self.executable.restore_sequence(self.state.as_mut(), id.0, tokens.len(), kept);
            if let Err(error) = restored {
                self.close(id);
                return Err(error);
            }
            held = Held::from(tokens.len());
        }
        for block in &blocks {
            self.blocks.hold(*block);
        }
        let tokens = tokens.to_vec();
        self.sequences[id.0] = Some(Sequence { tokens, blocks, held, shared, ends_sharing: false });
        Ok(id)
    }

    /// Shares the full blocks among a sequence's first `tokens` tokens with whoever asks for the same beginning.
    pub fn share(&mut self, id: SequenceId, tokens: usize) {
        if !self.shares_blocks() {
            return;
        }
        let Some(Some(sequence)) = self.sequences.get_mut(id.0) else { return };
        let full = tokens.min(sequence.tokens.len()) / BLOCK_TOKENS;
        while sequence.shared.len() < full && !sequence.ends_sharing {
            let at = sequence.shared.len();
            let parent = sequence.shared.last().copied().unwrap_or_default();
            let tokens = &sequence.tokens[at * BLOCK_TOKENS..(at + 1) * BLOCK_TOKENS];
            match self.blocks.publish(sequence.blocks[at], parent, tokens) {
                Some(key) => sequence.shared.push(key),
                None => sequence.ends_sharing = true,
            }
        }
    }

    /// Keeps what a sequence's own states hold for its first `border` tokens, where those are whole blocks that it has shared and
    /// it can go back to there, for those who begin as it does. Others' that were unused the longest go for it if `at_any_rate`;
    /// else it is kept only where there is room.
    ///
    /// # Errors
    /// What reading a state reports.
    pub fn keep_states(
        &mut self,
        id: SequenceId,
        border: usize,
        at_any_rate: bool,
    ) -> Result<(), BackendError> {
        if !self.shares_kept_states() || !(at_any_rate || self.kept.has_room()) {
            return Ok(());
        }
        let rewind = self.rewind();
        let Some(Some(sequence)) = self.sequences.get(id.0) else { return Ok(()) };
        let Some(tokens) = sequence.tokens.get(..border) else { return Ok(()) };
        let is_there =
            check_rewind(rewind, sequence.tokens.len(), border).is_ok() && sequence.held.reaches(border);
        let key = (border / BLOCK_TOKENS).checked_sub(1).and_then(|block| sequence.shared.get(block));
        if let Some(key) = key.copied()
            && border.is_multiple_of(BLOCK_TOKENS)
            && is_there
            && !self.kept.has(key, tokens)
        {
            let states = self.executable.read_sequence(self.state.as_mut(), id.0, border)?;
            if !states.is_empty() {
                self.kept.insert(key, tokens, states);
            }
        }
        Ok(())
    }

    /// The last border of blocks that a sequence has shared.
    #[must_use]
    pub fn shared_border(&self, id: SequenceId) -> usize {
        self.sequences.get(id.0).and_then(Option::as_ref).map_or(0, |s| s.shared.len() * BLOCK_TOKENS)
    }

    /// A new sequence without tokens.
    ///
    /// # Errors
    /// [`BackendError::Input`] where every place is taken.
    pub fn open(&mut self) -> Result<SequenceId, BackendError> {
        let places = self.sequences.len();
        match self.sequences.iter().position(Option::is_none) {
            Some(place) => {
                self.sequences[place] = Some(Sequence::default());
                Ok(SequenceId(place))
            }
            None => Err(BackendError::Input(format!("a sequence more than {places}: close one first"))),
        }
    }

    /// Ends a sequence; its blocks are free.
    pub fn close(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(id.0).and_then(Option::take) {
            self.blocks.give_back(sequence.blocks.into_iter());
        }
    }

    /// The tokens that a sequence holds; none where it is closed.
    #[must_use]
    pub fn tokens(&self, id: SequenceId) -> &[TokenId] {
        self.sequences.get(id.0).and_then(Option::as_ref).map_or(&[], |s| &s.tokens)
    }

    /// Forgets a sequence's tokens from position `len_tokens` on.
    ///
    /// # Errors
    /// [`BackendError::Rewind`] where a state cannot go back to that length, or into a block that another sequence has, too.
    pub fn truncate(&mut self, id: SequenceId, len_tokens: usize) -> Result<(), BackendError> {
        let rewind = self.rewind();
        let Some(Some(sequence)) = self.sequences.get_mut(id.0) else { return Ok(()) };
        let held_tokens = sequence.tokens.len();
        if len_tokens >= held_tokens {
            return Ok(());
        }
        check_rewind(rewind, held_tokens, len_tokens)?;
        if !sequence.held.reaches(len_tokens) {
            return Err(BackendError::Rewind { held_tokens, wanted_tokens: len_tokens });
        }
        let full = len_tokens / BLOCK_TOKENS;
        if sequence.shared.len() > full {
            // What comes next is written into the block that is no longer full.
            let is_inside = !len_tokens.is_multiple_of(BLOCK_TOKENS);
            if is_inside && !self.blocks.make_private(sequence.blocks[full]) {
                return Err(BackendError::Rewind { held_tokens, wanted_tokens: len_tokens });
            }
            sequence.shared.truncate(full);
        }
        if len_tokens == 0 {
            sequence.held = Held::default();
        }
        sequence.tokens.truncate(len_tokens);
        let blocks = len_tokens.div_ceil(BLOCK_TOKENS);
        self.blocks.give_back(sequence.blocks.drain(blocks..));
        Ok(())
    }

    fn rewind(&self) -> Rewind {
        self.executable.plan(1).graph.rewind()
    }

    /// Evaluates the next tokens of some sequences in one step; their rows of logits come in the order of `feeds`.
    ///
    /// # Errors
    /// [`BackendError::ContextFull`], [`BackendError::PoolFull`] or [`BackendError::Input`] before anything is changed. What
    /// the step reports: then no sequence holds its new tokens, and none of `feeds` holds any where a state cannot go back.
    pub fn step(
        &mut self,
        feeds: &[Feed<'_>],
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        self.use_taps(false);
        self.run(feeds, observer)
    }

    fn run(&mut self, feeds: &[Feed<'_>], observer: Option<&mut dyn Observer>) -> Result<(), BackendError> {
        self.reserve(feeds)?;
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let (mut of_sequence, mut kv_slots) = (Vec::new(), Vec::new());
        let (mut sequences, mut logits_rows) = (Vec::with_capacity(feeds.len()), Vec::new());
        for (i, feed) in feeds.iter().enumerate() {
            let Some(Some(held)) = self.sequences.get(feed.sequence.0) else { continue };
            let sequence = StepSequence { blocks: &held.blocks, place: feed.sequence.0 as u32 };
            for (position, token) in (held.tokens.len()..).zip(feed.tokens) {
                tokens.push(*token);
                positions.push(position as u32);
                of_sequence.push(i as u32);
                kv_slots.push(sequence.slot(position) as u32);
            }
            sequences.push(sequence);
            if feed.wants_logits {
                logits_rows.push(tokens.len() as u32 - 1);
            }
        }
        let input = StepInput {
            tokens: StepTokens::Host(&tokens),
            positions: &positions,
            sequence: &of_sequence,
            kv_slots: &kv_slots,
            sequences: &sequences,
            logits_rows: &logits_rows,
        };
        self.logits_rows = 0;
        let done = self.executable.step(self.state.as_mut(), &input, observer);
        let wanted = logits_rows.len();
        let rewind = self.rewind();
        for feed in feeds {
            let Some(Some(held)) = self.sequences.get_mut(feed.sequence.0) else { continue };
            match done {
                Ok(()) => held.tokens.extend_from_slice(feed.tokens),
                // The state has changed from the step's first position on; such a one shares nothing.
                Err(_) if rewind == Rewind::Checkpoint => {
                    held.tokens.clear();
                    held.held = Held::default();
                }
                Err(_) => {}
            }
        }
        done?;
        self.logits_rows = wanted;
        Ok(())
    }

    /// Gives each sequence the blocks that its next tokens need, all or none, and notes what rings write over for them.
    fn reserve(&mut self, feeds: &[Feed<'_>]) -> Result<(), BackendError> {
        let capacity_tokens = self.capacity_tokens();
        let mut missing = 0;
        for (i, feed) in feeds.iter().enumerate() {
            let Some(Some(held)) = self.sequences.get(feed.sequence.0) else {
                return Err(BackendError::Input(format!("sequence {} is not open", feed.sequence.0)));
            };
            if feed.tokens.is_empty() || feeds[..i].iter().any(|f| f.sequence == feed.sequence) {
                return Err(BackendError::Input(format!(
                    "sequence {}: wanted some tokens, and once in a step",
                    feed.sequence.0
                )));
            }
            let wanted_tokens = held.tokens.len() + feed.tokens.len();
            if wanted_tokens > capacity_tokens {
                return Err(BackendError::ContextFull { wanted_tokens, capacity_tokens });
            }
            missing += wanted_tokens.div_ceil(BLOCK_TOKENS).saturating_sub(held.blocks.len());
        }
        if missing > self.blocks.available() {
            return Err(BackendError::PoolFull {
                wanted_tokens: missing * BLOCK_TOKENS,
                free_tokens: self.free_tokens(),
            });
        }
        for feed in feeds {
            let Some(Some(held)) = self.sequences.get_mut(feed.sequence.0) else { continue };
            held.held.write(self.state.rings(), held.tokens.len() + feed.tokens.len());
            let blocks = (held.tokens.len() + feed.tokens.len()).div_ceil(BLOCK_TOKENS);
            let taken = blocks.saturating_sub(held.blocks.len());
            held.blocks.extend((0..taken).filter_map(|_| self.blocks.take()));
        }
        Ok(())
    }

    /// A row of the last step's logits: rows count the feeds that wanted some.
    ///
    /// # Errors
    /// [`BackendError::Input`] where there is no such row.
    pub fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        self.check_row(row)?;
        self.executable.logits(row, out)
    }

    /// The best next token of a row.
    ///
    /// # Errors
    /// As [`Sequences::logits`]; a NaN among the logits.
    pub fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        self.check_row(row)?;
        self.executable.argmax(row)
    }

    fn check_row(&self, row: usize) -> Result<(), BackendError> {
        if row >= self.logits_rows {
            return Err(BackendError::Input(format!("row {row} of {} rows of logits", self.logits_rows)));
        }
        Ok(())
    }
}
