//! What a launch reads and writes, and how its chunks share it: launches need no `unsafe` for rows of their own.
//!
//! Three facts make the functions here sound, each established in one place:
//! - the words of a launch's [`Output`]s are apart from each other and from its [`Input`]s, and so are its states
//!   ([`Operands::check`], when it is compiled; neither type can be made or copied elsewhere);
//! - a number is drawn by one worker between two barriers ([`Worker::shares`]), and an output says once and for all
//!   what each number owns of it ([`Share`]): no two chunks own the same word;
//! - nothing that a [`Chunk`] lends outlives it, and no chunk outlives the barrier, which wants the worker for itself.
//!
//! What cannot be said by a number (panels of the rows that chose an expert, parts of a head) is written through
//! [`Output::part_mut`], which is unsafe.

use super::memory::Val;
use super::ops::Step;
use super::pool::Worker;
use moe_run_graph::ir::StepSizes;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// A value that a launch reads.
#[derive(Clone, Copy, Debug)]
pub struct Input(Val);

/// A value that a launch writes. It stands once in its launch.
#[derive(Debug)]
pub struct Output {
    val: Val,
    share: Share,
}

/// A state that a launch reads.
#[derive(Clone, Copy, Debug)]
pub struct StateInput(usize);

/// A state that a launch writes. It stands once in its launch.
#[derive(Debug)]
pub struct StateOutput {
    state: usize,
    share: Share,
}

/// What chunk number i owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Rows from i · n on, n of them; of a state the slots of these tokens.
    Rows(usize),
    /// Columns from i · n on, n of them, in every row; of a state elements of the rows of all sequences.
    Columns(usize),
    /// Tiles of so many rows and columns, numbered down the rows, then along them.
    Tiles {
        /// Rows of a tile.
        rows: usize,
        /// Columns of a tile.
        columns: usize,
    },
    /// Row i of rows of S (the cached positions) elements.
    CachedRow,
}

impl Input {
    /// Rows in a step.
    pub fn rows(self, sizes: StepSizes) -> usize {
        self.0.lead.of(sizes)
    }

    /// Elements of a row.
    pub fn width(self) -> usize {
        self.0.width
    }

    /// The same elements in rows of `width`.
    pub fn with_width(self, width: usize) -> Input {
        Input(Val { width, ..self.0 })
    }
}

impl Output {
    /// Rows in a step.
    pub fn rows(&self, sizes: StepSizes) -> usize {
        self.val.lead.of(sizes)
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.val.width
    }

    /// The same elements in rows of `width`.
    pub fn with_width(self, width: usize) -> Output {
        Output { val: Val { width, ..self.val }, ..self }
    }

    /// Shared otherwise than row by row.
    pub fn shared(self, share: Share) -> Output {
        Output { share, ..self }
    }

    /// Columns of one row, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier, and what is lent is given back before.
    #[inline]
    pub unsafe fn part_mut<'a>(&self, step: &Step<'a>, row: usize, columns: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { step.arena.part_mut(self.val, row, columns) }
    }

    /// Row `row` of rows of S elements, to write.
    ///
    /// # Safety
    /// As [`Output::part_mut`].
    pub unsafe fn cached_row_mut<'a>(&self, step: &Step<'a>, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.cached_part_mut(step, row, 0..step.sizes.cached) }
    }

    /// Columns of row `row` of rows of S elements, to write.
    ///
    /// # Safety
    /// As [`Output::part_mut`].
    pub unsafe fn cached_part_mut<'a>(
        &self,
        step: &Step<'a>,
        row: usize,
        columns: Range<usize>,
    ) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { step.arena.part_mut(Val { width: step.sizes.cached, ..self.val }, row, columns) }
    }

    /// What a chunk owns of a row, in rows of `width` elements.
    fn columns(&self, sizes: StepSizes, number: usize, row: usize) -> Range<usize> {
        let width = self.val.width;
        let part = |number: usize, n: usize| (number * n).min(width)..((number + 1) * n).min(width);
        let (owner, columns) = match self.share {
            Share::Rows(n) => (row / n, 0..width),
            Share::Columns(n) => return part(number, n),
            Share::Tiles { rows, columns } => {
                let down = self.rows(sizes).div_ceil(rows);
                (number / down * down + row / rows, part(number / down, columns))
            }
            Share::CachedRow => (row, 0..sizes.cached),
        };
        assert!(owner == number, "row {row} for chunk {number} of {:?}", self.share);
        columns
    }
}

impl StateInput {
    /// Index of the state.
    pub fn index(self) -> usize {
        self.0
    }
}

impl StateOutput {
    /// Shared otherwise than token by token.
    pub fn shared(self, share: Share) -> StateOutput {
        StateOutput { share, ..self }
    }

    /// Index of the state.
    pub fn index(&self) -> usize {
        self.state
    }
}

impl<'a> Step<'a> {
    /// Rows of an input.
    pub fn rows(&self, input: Input, rows: Range<usize>) -> &'a [f32] {
        // SAFETY: a launch writes outputs only, which are apart from its inputs.
        unsafe { self.arena.rows(input.0, rows) }
    }

    /// A row of an input.
    pub fn row(&self, input: Input, row: usize) -> &'a [f32] {
        self.rows(input, row..row + 1)
    }

    /// Rows of an input of integers.
    pub fn ids(&self, input: Input, rows: Range<usize>) -> &'a [u32] {
        bytemuck::cast_slice(self.rows(input, rows))
    }

    /// The bytes of slots of a head, which are of one block, of a state that the launch reads.
    pub fn cached(&self, state: StateInput, head: usize, slots: Range<usize>) -> &'a [u8] {
        // SAFETY: no state is read and written by one launch.
        unsafe { self.state.bytes(state.0, head, slots) }
    }
}

/// A number that one worker has drawn, and with it the right to what the outputs say.
pub struct Chunk<'w> {
    number: usize,
    worker: PhantomData<&'w Worker<'w>>,
}

impl Worker<'_> {
    /// The chunks below `count` that fall to this member; each falls to exactly one. At most one such loop may run between
    /// two barriers.
    pub fn shares(&self, count: usize) -> impl Iterator<Item = Chunk<'_>> {
        self.chunks(count).map(|number| Chunk { number, worker: PhantomData })
    }
}

impl Chunk<'_> {
    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Those of `count` things that it has where each chunk has `n`.
    pub fn range(&self, n: usize, count: usize) -> Range<usize> {
        (self.number * n).min(count)..((self.number + 1) * n).min(count)
    }

    /// What it owns of a row.
    pub fn row_mut<'c>(&'c mut self, step: &Step<'c>, out: &Output, row: usize) -> &'c mut [f32] {
        self.part_mut(step, out, row).0
    }

    /// What it owns of a row, and which columns that is.
    pub fn part_mut<'c>(
        &'c mut self,
        step: &Step<'c>,
        out: &Output,
        row: usize,
    ) -> (&'c mut [f32], Range<usize>) {
        let columns = out.columns(step.sizes, self.number, row);
        // SAFETY: this is what the number owns, and this is the one chunk of the number.
        let part = unsafe {
            match out.share {
                Share::CachedRow => out.cached_row_mut(step, row),
                Share::Rows(_) | Share::Columns(_) | Share::Tiles { .. } => {
                    out.part_mut(step, row, columns.clone())
                }
            }
        };
        (part, columns)
    }

    /// As [`Chunk::row_mut`], of integers.
    pub fn ids_mut<'c>(&'c mut self, step: &Step<'c>, out: &Output, row: usize) -> &'c mut [u32] {
        bytemuck::cast_slice_mut(self.row_mut(step, out, row))
    }

    /// Encodes a token's row, all heads, of a state whose tokens are shared out by [`Share::Rows`].
    pub fn encode(&mut self, step: &Step<'_>, state: &StateOutput, token: usize, x: &[f32]) {
        let Share::Rows(n) = state.share else {
            unreachable!("tokens of a state shared by {:?}", state.share)
        };
        assert!(token / n == self.number, "token {token} for chunk {} of {n}", self.number);
        // SAFETY: the token is the chunk's, and no other token of the step has its slot (`StepInput::check`).
        unsafe { step.state.encode(step.kernels, state.state, 0, step.slot(state.state, token), x) };
    }

    /// What it owns of a row, and of a sequence's row of a state whose elements are shared out by [`Share::Columns`].
    pub fn row_and_state<'c>(
        &'c mut self,
        step: &Step<'c>,
        (out, row): (&Output, usize),
        (state, place): (&StateOutput, usize),
    ) -> (&'c mut [f32], &'c mut [f32]) {
        let Share::Columns(n) = state.share else {
            unreachable!("rows of a state shared by {:?}", state.share)
        };
        let elems = self.range(n, step.state.row_elems(state.state));
        // SAFETY: as for `row_mut`; these elements are the number's in every sequence. Values and states are apart.
        let past = unsafe { step.state.row_mut(state.state, place, elems) };
        (self.row_mut(step, out, row), past)
    }
}

/// What a launch has taken while it is compiled.
#[derive(Default)]
pub struct Operands {
    inputs: RefCell<Vec<Val>>,
    outputs: RefCell<Vec<Val>>,
    states_read: RefCell<Vec<usize>>,
    states_written: RefCell<Vec<usize>>,
}

impl Operands {
    /// A value that the launch reads.
    pub fn input(&self, val: Val) -> Input {
        self.inputs.borrow_mut().push(val);
        Input(val)
    }

    /// A value that the launch writes, shared row by row.
    pub fn output(&self, val: Val) -> Output {
        self.outputs.borrow_mut().push(val);
        Output { val, share: Share::Rows(1) }
    }

    /// A state that the launch reads.
    pub fn state_input(&self, state: usize) -> StateInput {
        self.states_read.borrow_mut().push(state);
        StateInput(state)
    }

    /// A state that the launch writes, shared token by token.
    pub fn state_output(&self, state: usize) -> StateOutput {
        self.states_written.borrow_mut().push(state);
        StateOutput { state, share: Share::Rows(1) }
    }

    /// Whether all that the launch writes is apart from all else that it takes. A launch is made of what the operands hand
    /// out, and runs only if this says so.
    #[must_use]
    pub fn check(self) -> bool {
        let Operands { inputs, outputs, states_read, states_written } = self;
        let (inputs, outputs) = (inputs.into_inner(), outputs.into_inner());
        let (read, written) = (states_read.into_inner(), states_written.into_inner());
        let apart = |a: &Val, b: &Val| a.at + a.words <= b.at || b.at + b.words <= a.at;
        let values = outputs
            .iter()
            .enumerate()
            .all(|(i, out)| outputs[..i].iter().chain(&inputs).all(|other| apart(out, other)));
        values && written.iter().enumerate().all(|(i, s)| !written[..i].contains(s) && !read.contains(s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Lead;

    fn val(at: usize, words: usize) -> Val {
        Val { at, lead: Lead::Tokens, width: 4, words }
    }

    #[test]
    fn what_is_written_stands_apart() {
        let check = |inputs: &[Val], outputs: &[Val], read: &[usize], written: &[usize]| {
            let operands = Operands::default();
            inputs.iter().for_each(|v| assert_eq!(operands.input(*v).width(), 4));
            outputs.iter().for_each(|v| assert_eq!(operands.output(*v).width(), 4));
            read.iter().for_each(|s| assert_eq!(operands.state_input(*s).index(), *s));
            written.iter().for_each(|s| assert_eq!(operands.state_output(*s).index(), *s));
            operands.check()
        };
        assert!(check(&[val(0, 8), val(4, 8)], &[val(12, 4), val(16, 4)], &[0], &[1]));
        assert!(!check(&[val(0, 8)], &[val(7, 4)], &[], &[]));
        assert!(!check(&[], &[val(0, 8), val(4, 8)], &[], &[]));
        assert!(!check(&[], &[val(0, 8), val(0, 8)], &[], &[]));
        assert!(!check(&[], &[], &[2], &[2]));
        assert!(!check(&[], &[], &[], &[2, 2]));
    }

    #[test]
    #[should_panic(expected = "row 8 for chunk 1 of Rows(4)")]
    fn a_row_of_another_chunk_is_refused() {
        let out = Operands::default().output(val(0, 64)).shared(Share::Rows(4));
        assert_eq!(out.columns(SIZES, 1, 7), 0..4);
        let _ = out.columns(SIZES, 1, 8);
    }

    const SIZES: StepSizes = StepSizes { tokens: 5, logits_rows: 1, cached: 9 };

    /// Every element of a value has one owner.
    #[test]
    fn chunks_own_every_element_once() {
        let shares = [
            Share::Rows(1),
            Share::Rows(2),
            Share::Columns(3),
            Share::Tiles { rows: 1, columns: 3 },
            Share::Tiles { rows: 2, columns: 2 },
            Share::Tiles { rows: 8, columns: 5 },
        ];
        for share in shares {
            let out = Operands::default().output(val(0, 64)).shared(share);
            let mut owners = vec![0; SIZES.tokens * 4];
            for number in 0..SIZES.tokens * 4 {
                for row in 0..SIZES.tokens {
                    let owned = std::panic::catch_unwind(|| out.columns(SIZES, number, row));
                    owned.into_iter().flatten().for_each(|column| owners[row * 4 + column] += 1);
                }
            }
            assert!(owners.iter().all(|n| *n == 1), "{share:?}: {owners:?}");
        }
    }
}
