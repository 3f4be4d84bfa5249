//! What a step is given: rows of one sequence or several, and where they lie in the states.
//!
//! A state of rows is a pool of slots, handed out in blocks of [`BLOCK_TOKENS`]; a sequence has a table of them. Deliberately
//! absent: who gets which block, which is [`crate::sequences`]'.

use crate::error::BackendError;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::StepSizes;
use std::ops::Range;

/// Tokens of a block: what a sequence's share of the state's pool is counted in.
pub const BLOCK_TOKENS: usize = 64;

/// The blocks of a sequence that has a whole pool of so many tokens for itself, in order: its slots are its positions.
#[must_use]
pub fn blocks_in_order(tokens: usize) -> Box<[u32]> {
    (0..tokens.div_ceil(BLOCK_TOKENS) as u32).collect()
}

/// A sequence that takes part in a step: where its rows lie in the pool of each state.
#[derive(Debug, Clone, Copy)]
pub struct StepSequence<'a> {
    /// The blocks of its positions, in order: position p is in slot `blocks[p / 64] · 64 + p % 64` of every state of rows.
    pub blocks: &'a [u32],
    /// Its place in every state that is one for a whole sequence.
    pub place: u32,
}

impl StepSequence<'_> {
    /// The slot of a position, which its blocks cover.
    #[must_use]
    pub fn slot(&self, position: usize) -> usize {
        self.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }
}

/// Rows of a step that follow each other and belong to one sequence, at ascending positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRun {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Index into the step's sequences.
    pub sequence: usize,
    /// The position of the first row.
    pub first_position: usize,
}

/// One step's input: rows of one sequence or several. The rows of a sequence follow each other, at positions that ascend by
/// one; `kv_slots` are what the sequences' blocks give.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// T ids.
    pub tokens: StepTokens<'a>,
    /// T positions.
    pub positions: &'a [u32],
    /// T indices into `sequences`.
    pub sequence: &'a [u32],
    /// T places in the state.
    pub kv_slots: &'a [u32],
    /// The sequences that take part, each in one run of rows.
    pub sequences: &'a [StepSequence<'a>],
    /// R rows (indices into the step's tokens) whose logits are wanted.
    pub logits_rows: &'a [u32],
}

/// Where a step's tokens come from.
#[derive(Debug, Clone, Copy)]
pub enum StepTokens<'a> {
    /// Ids on the host.
    Host(&'a [TokenId]),
    /// The token that [`Executable::argmax`](crate::Executable::argmax) of the given row chose on the device: it never visits the host.
    Argmax {
        /// The row of the previous step's logits.
        row: usize,
    },
}

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// T, R and S at most.
    pub sizes: StepSizes,
    /// Token ids lie below it; `None` where the graph embeds none.
    pub vocab_size: Option<usize>,
    /// Slots of the state's pool.
    pub slots: usize,
    /// Places in states of whole sequences.
    pub places: usize,
}

impl<'a> StepInput<'a> {
    /// T.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// T, R and S of the step; S counts the positions of its longest sequence.
    #[must_use]
    pub fn sizes(&self) -> StepSizes {
        let cached = self.positions.iter().max().map_or(0, |s| *s as usize + 1);
        StepSizes { tokens: self.len(), logits_rows: self.logits_rows.len(), cached }
    }

    /// The runs of rows of one sequence each, in order.
    pub fn runs(&self) -> impl Iterator<Item = StepRun> + use<'a> {
        let (sequence, positions) = (self.sequence, self.positions);
        let mut start = 0;
        std::iter::from_fn(move || {
            let of = *sequence.get(start)?;
            let len = sequence[start..].iter().take_while(|s| **s == of).count();
            let rows = start..start + len;
            start = rows.end;
            Some(StepRun { first_position: positions[rows.start] as usize, rows, sequence: of as usize })
        })
    }

    /// Checks lengths, rows, capacity, token ids, and that each sequence is one run within its own blocks: no two rows go to
    /// one slot, no two sequences have one place.
    ///
    /// # Errors
    /// [`BackendError::Input`] or [`BackendError::ContextFull`].
    pub fn check(&self, limits: &StepLimits) -> Result<(), BackendError> {
        let (t, max) = (self.len(), limits.sizes);
        let wrong = |what: String| Err(BackendError::Input(what));
        if t == 0 || t > max.tokens {
            return wrong(format!("{t} tokens, wanted 1 to {}", max.tokens));
        }
        if self.sequence.len() != t || self.kv_slots.len() != t {
            return wrong(format!(
                "{t} positions, {} sequences, {} slots",
                self.sequence.len(),
                self.kv_slots.len()
            ));
        }
        if let StepTokens::Host(tokens) = self.tokens {
            if tokens.len() != t {
                return wrong(format!("{t} positions for {} tokens", tokens.len()));
            }
            if let Some(vocab_size) = limits.vocab_size
                && let Some(bad) = tokens.iter().find(|id| id.0 as usize >= vocab_size)
            {
                return wrong(format!("token {} of a vocabulary of {vocab_size}", bad.0));
            }
        } else if t != 1 {
            return wrong(format!("{t} tokens from the device, wanted 1"));
        }
        if self.logits_rows.len() > max.logits_rows {
            return wrong(format!(
                "{} rows of logits, wanted at most {}",
                self.logits_rows.len(),
                max.logits_rows
            ));
        }
        if let Some(row) = self.logits_rows.iter().find(|r| **r as usize >= t) {
            return wrong(format!("row {row} of {t} tokens"));
        }
        let wanted_tokens = self.sizes().cached;
        if wanted_tokens > max.cached {
            return Err(BackendError::ContextFull { wanted_tokens, capacity_tokens: max.cached });
        }
        self.check_runs(limits)
    }

    /// Each sequence is one run, and its rows go to slots of its blocks.
    fn check_runs(&self, limits: &StepLimits) -> Result<(), BackendError> {
        let wrong = |what: String| Err(BackendError::Input(what));
        for (i, run) in self.runs().enumerate() {
            let Some(sequence) = self.sequences.get(run.sequence) else {
                return wrong(format!("sequence {} of {}", run.sequence, self.sequences.len()));
            };
            if self.runs().take(i).any(|other| other.sequence == run.sequence) {
                return wrong(format!("sequence {} in two runs of rows, wanted one", run.sequence));
            }
            if sequence.place as usize >= limits.places {
                return wrong(format!("place {} of {} for sequences", sequence.place, limits.places));
            }
            let blocks = (run.first_position + run.rows.len()).div_ceil(BLOCK_TOKENS);
            let pool = limits.slots.div_ceil(BLOCK_TOKENS);
            match sequence.blocks.get(..blocks) {
                None => {
                    return wrong(format!("{} blocks of a sequence, wanted {blocks}", sequence.blocks.len()));
                }
                Some(blocks) => {
                    if let Some(bad) = blocks.iter().find(|b| **b as usize >= pool) {
                        return wrong(format!("block {bad} of {pool}"));
                    }
                }
            }
            self.check_apart(i, &run, sequence)?;
            for (row, position) in run.rows.clone().zip(run.first_position..) {
                if self.positions[row] as usize != position {
                    return wrong(format!("position {} where {position} follows", self.positions[row]));
                }
                let slot = sequence.slot(position);
                if self.kv_slots[row] as usize != slot || slot >= limits.slots {
                    return wrong(format!("slot {} of {} for slot {slot}", self.kv_slots[row], limits.slots));
                }
            }
        }
        Ok(())
    }

    /// Nothing that the rows of run `i` write to is written to by a run before it, or twice. Blocks that are only read may be
    /// shared.
    fn check_apart(&self, i: usize, run: &StepRun, sequence: &StepSequence<'_>) -> Result<(), BackendError> {
        let written = |run: &StepRun| {
            let blocks = self.sequences.get(run.sequence).map_or(&[][..], |sequence| sequence.blocks);
            let end = (run.first_position + run.rows.len()).div_ceil(BLOCK_TOKENS);
            blocks.get(run.first_position / BLOCK_TOKENS..end).unwrap_or_default()
        };
        let own = written(run);
        let mut twice = (1..own.len()).find(|n| own[..*n].contains(&own[*n])).map(|n| own[n]);
        for other in self.runs().take(i) {
            twice = twice.or_else(|| written(&other).iter().find(|b| own.contains(b)).copied());
            if self.sequences[other.sequence].place == sequence.place {
                let place = sequence.place;
                return Err(BackendError::Input(format!("place {place} for two sequences, wanted one each")));
            }
        }
        match twice {
            None => Ok(()),
            Some(block) => {
                Err(BackendError::Input(format!("rows of two places in block {block}, wanted a block each")))
            }
        }
    }

    /// Refuses what a backend without block tables cannot do: anything but one sequence whose slots are its positions.
    ///
    /// # Errors
    /// [`BackendError::Input`].
    pub fn check_one_sequence(&self) -> Result<(), BackendError> {
        if self.sequences.len() != 1 || self.positions != self.kv_slots {
            return Err(BackendError::Input(
                "a state of one sequence, whose slots are its positions: take a pool for several".into(),
            ));
        }
        Ok(())
    }
}
