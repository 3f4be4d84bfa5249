//! What a step's workers share: the arena of values, and buffers that chunks fill side by side.
//!
//! Every access goes through ranges. The rule that makes it sound is one for the whole backend: between two barriers,
//! an element is either read by anyone or written by the one worker whose chunk it belongs to, never both. `share` is what
//! launches see of it: there the rule is proven for whatever a chunk's number can say.

use moe_run_graph::ir::{Dim, Shape, StepSizes};
use std::cell::UnsafeCell;
use std::ops::Range;

/// A boxed slice that workers fill in disjoint ranges.
pub struct Shared<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: all access is through the unsafe methods below, whose callers keep ranges apart.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> From<Box<[T]>> for Shared<T> {
    fn from(boxed: Box<[T]>) -> Shared<T> {
        // SAFETY: UnsafeCell<T> has T's layout.
        Shared { cells: unsafe { Box::from_raw(Box::into_raw(boxed) as *mut [UnsafeCell<T>]) } }
    }
}

impl<T: bytemuck::Pod> Shared<T> {
    /// `len` zeros.
    pub fn new(len: usize) -> Shared<T> {
        Shared::from(vec![T::zeroed(); len].into_boxed_slice())
    }

    /// `len` zeros, untouched until they are used; `None` where the memory cannot be had.
    pub fn try_zeroed(len: usize) -> Option<Shared<T>> {
        bytemuck::allocation::try_zeroed_slice_box(len).ok().map(Shared::from)
    }

    /// Bytes `at..at + len` of the buffer.
    ///
    /// # Safety
    /// Nobody writes to them until the next barrier.
    pub unsafe fn read_bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at + len <= size_of_val(&*self.cells), "bytes {at} + {len} of {}", size_of_val(&*self.cells));
        // SAFETY: inside the buffer; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.cells.as_ptr().cast::<u8>().add(at), len) }
    }

    /// Bytes `at..at + len` of the buffer, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "see `Shared::write`")]
    pub unsafe fn write_bytes(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= size_of_val(&*self.cells), "bytes {at} + {len} of {}", size_of_val(&*self.cells));
        let start = UnsafeCell::raw_get(self.cells.as_ptr()).cast::<u8>();
        // SAFETY: inside the buffer; the caller excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(start.add(at), len) }
    }
}

impl<T> Shared<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// A range to read.
    ///
    /// # Safety
    /// Nobody writes to it until the next barrier.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.cells[range];
        // SAFETY: UnsafeCell<T> has T's layout; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// A range to write.
    ///
    /// # Safety
    /// Nobody else reads or writes it until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "disjoint ranges of one buffer are what this type is for")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.cells[range];
        // SAFETY: as for `read`; the caller excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()).cast(), cells.len()) }
    }
}

/// What the first axis of a value counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lead {
    /// T.
    Tokens,
    /// R.
    LogitsRows,
}

impl Lead {
    /// Its size in a step.
    pub fn of(self, sizes: StepSizes) -> usize {
        match self {
            Lead::Tokens => sizes.tokens,
            Lead::LogitsRows => sizes.logits_rows,
        }
    }
}

/// A stored value: `[lead, width]` words from `at` on, `width` being all fixed axes together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Val {
    /// First word in the arena.
    pub at: usize,
    /// What its rows count.
    pub lead: Lead,
    /// Words of a row.
    pub width: usize,
    /// Words in the largest step: rows end before them.
    pub words: usize,
}

impl Val {
    /// The place of a value of this shape at word `at`, in steps of up to `max` tokens, rows of logits and positions.
    pub fn new(at: usize, shape: &Shape, max: StepSizes) -> Val {
        let lead = if shape.0.contains(&Dim::LogitsRows) { Lead::LogitsRows } else { Lead::Tokens };
        Val { at, lead, width: shape.fixed_elems(), words: shape.elems(max) }
    }

    /// The words of some of its rows.
    fn rows(self, rows: Range<usize>) -> Range<usize> {
        let (start, end) = (rows.start * self.width, rows.end * self.width);
        assert!(start <= end && end <= self.words, "words {start} to {end} of a value of {}", self.words);
        self.at + start..self.at + end
    }
}

/// All stored values of a plan, 32-bit words.
pub struct Arena {
    words: Shared<f32>,
}

impl Arena {
    /// An arena of so many words; `None` where the memory cannot be had.
    pub fn try_new(words: usize) -> Option<Arena> {
        Some(Arena { words: Shared::try_zeroed(words)? })
    }

    /// Rows of a value.
    ///
    /// # Safety
    /// Nobody writes to them until the next barrier.
    pub unsafe fn rows(&self, val: Val, rows: Range<usize>) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { self.words.read(val.rows(rows)) }
    }

    /// Rows of a value, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "see `Shared::write`")]
    pub unsafe fn rows_mut(&self, val: Val, rows: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.words.write(val.rows(rows)) }
    }

    /// Columns of one row, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "see `Shared::write`")]
    #[inline]
    pub unsafe fn part_mut(&self, val: Val, row: usize, columns: Range<usize>) -> &mut [f32] {
        let words = val.rows(row..row + 1);
        assert!(
            columns.start <= columns.end && columns.end <= val.width,
            "columns {columns:?} of {}",
            val.width
        );
        // SAFETY: the caller's promise.
        unsafe { self.words.write(words.start + columns.start..words.start + columns.end) }
    }

    /// Rows of a value of integers, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "see `Shared::write`")]
    pub unsafe fn ids_mut(&self, val: Val, rows: Range<usize>) -> &mut [u32] {
        // SAFETY: the caller's promise.
        bytemuck::cast_slice_mut(unsafe { self.rows_mut(val, rows) })
    }
}

/// Bytes of a weight source that the executable keeps alive.
#[derive(Clone, Copy)]
pub struct WeightBytes {
    start: *const u8,
    len: usize,
}

// SAFETY: shared, read-only bytes.
unsafe impl Send for WeightBytes {}
// SAFETY: as above.
unsafe impl Sync for WeightBytes {}

impl WeightBytes {
    /// Forgets the lifetime.
    ///
    /// # Safety
    /// Whoever owns `bytes` outlives every use of the result and leaves the bytes as they are.
    pub unsafe fn new(bytes: &[u8]) -> WeightBytes {
        WeightBytes { start: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        // SAFETY: promised to `new`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}
