//! What a step's workers share: the arena of values, and buffers that chunks fill side by side.
//!
//! Every access goes through ranges. The rule that makes it sound is one for the whole backend: between two barriers,
//! an element is either read by anyone or written by the one worker whose chunk it belongs to, never both.

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
}

impl Val {
    /// The place of a value of this shape at word `at`.
    pub fn new(at: usize, shape: &Shape) -> Val {
        let lead = if shape.0.contains(&Dim::LogitsRows) { Lead::LogitsRows } else { Lead::Tokens };
        Val { at, lead, width: shape.fixed_elems() }
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
        unsafe { self.words.read(val.at + rows.start * val.width..val.at + rows.end * val.width) }
    }

    /// Rows of a value, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "see `Shared::write`")]
    pub unsafe fn rows_mut(&self, val: Val, rows: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.words.write(val.at + rows.start * val.width..val.at + rows.end * val.width) }
    }

    /// Columns of one row, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes them until the next barrier.
    #[expect(clippy::mut_from_ref, reason = "see `Shared::write`")]
    pub unsafe fn part_mut(&self, val: Val, row: usize, columns: Range<usize>) -> &mut [f32] {
        let at = val.at + row * val.width;
        // SAFETY: the caller's promise.
        unsafe { self.words.write(at + columns.start..at + columns.end) }
    }

    /// Rows of a value of integers.
    ///
    /// # Safety
    /// Nobody writes to them until the next barrier.
    pub unsafe fn ids(&self, val: Val, rows: Range<usize>) -> &[u32] {
        // SAFETY: the caller's promise.
        bytemuck::cast_slice(unsafe { self.rows(val, rows) })
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
