//! Stage 6: the states of the CPU: for each that is declared, rows of tokens in blocks, stored as the KV type says, or one row
//! of floats for each sequence.

use super::kernels::Kernels;
use super::memory::Shared;
use half::f16;
use half::slice::HalfFloatSliceExt;
use moe_run_graph::ir::{Lifetime, StateDecl};
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{BLOCK_TOKENS, KvType, PoolSize, Ring, Rings, State, StepSequence};
use std::any::Any;
use std::ops::Range;

/// One declared state.
struct StateRows {
    heads: usize,
    width: usize,
    kv_type: KvType,
    /// Rows of a block: `[blocks][heads][block_rows][width]`, so that a head's rows of a block follow each other.
    block_rows: usize,
    /// All rows of a head.
    slots: usize,
    /// Set where only a window is read: each sequence has a ring of blocks of its own.
    ring: Option<Ring>,
    row_bytes: usize,
    bytes: Shared<u32>,
}

impl StateRows {
    /// Where a head's row is.
    fn at(&self, head: usize, slot: usize) -> usize {
        let (block, row) = (slot / self.block_rows, slot % self.block_rows);
        ((block * self.heads + head) * self.block_rows + row) * self.row_bytes
    }

    /// Whether the blocks of a sequence's table say where its rows are.
    fn is_in_blocks(&self) -> bool {
        self.block_rows > 1 && self.ring.is_none()
    }

    /// Bytes of a block's rows of all heads.
    fn block_bytes(&self) -> usize {
        self.heads * self.block_rows * self.row_bytes
    }
}

/// The states of all sequences of a pool.
pub struct CpuState {
    kv_type: KvType,
    size: PoolSize,
    rings: Rings,
    states: Vec<StateRows>,
}

impl CpuState {
    /// Room for the tokens of some sequences; heads are whole blocks of the KV type.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub fn new(decls: &[StateDecl], kv_type: KvType, size: PoolSize) -> Result<CpuState, BackendError> {
        let mut states = Vec::with_capacity(decls.len());
        let rings = size.rings(decls);
        for (decl, ring) in decls.iter().zip(&rings) {
            let (kv_type, slots, block_rows) = match decl.lifetime {
                // Whole blocks, which are whole panels: keys are always read 16 rows at a time.
                Lifetime::PerToken { .. } => {
                    (kv_type, size.rows(decl).next_multiple_of(BLOCK_TOKENS), BLOCK_TOKENS)
                }
                Lifetime::PerSequence => (KvType::F32, size.rows(decl), 1),
            };
            let row_bytes = kv_type.row_bytes(decl.width);
            let total = slots.checked_mul(row_bytes).and_then(|n| n.checked_mul(decl.heads));
            let words = total.map(|n| n.div_ceil(size_of::<u32>()));
            let bytes = words.and_then(Shared::try_zeroed).ok_or_else(|| BackendError::OutOfMemory {
                what: format!(
                    "the KV cache: {slots} slots of {} bytes in each of {} states",
                    row_bytes * decl.heads,
                    decls.len()
                ),
                wanted_bytes: (slots as u64)
                    .saturating_mul((row_bytes * decl.heads) as u64)
                    .saturating_mul(decls.len() as u64),
                available_bytes: 0,
                advice: "lower --ctx-size, or take --kv-type q8_0".into(),
            })?;
            let (heads, width, ring) = (decl.heads, decl.width, *ring);
            states.push(StateRows { heads, width, kv_type, block_rows, slots, ring, row_bytes, bytes });
        }
        Ok(CpuState { kv_type, size, rings, states })
    }

    /// Whether it has what these declare, stored in this type.
    pub fn is_of(&self, decls: &[StateDecl], kv_type: KvType) -> bool {
        let same = |(rows, decl): (&StateRows, &StateDecl)| {
            let per_token = matches!(decl.lifetime, Lifetime::PerToken { .. });
            (rows.heads, rows.width) == (decl.heads, decl.width) && (rows.block_rows > 1) == per_token
        };
        self.kv_type == kv_type && self.states.len() == decls.len() && self.states.iter().zip(decls).all(same)
    }

    /// How rows are stored.
    pub fn format(&self) -> Format {
        match self.kv_type {
            KvType::F32 => Format::F32,
            KvType::F16 => Format::F16,
            KvType::Q8_0 => Format::Q8_0,
        }
    }

    /// Bytes of `elems` elements of a row.
    pub fn bytes_of(&self, elems: usize) -> usize {
        self.kv_type.row_bytes(elems)
    }

    /// Bytes between a head's rows.
    pub fn row_bytes(&self, state: usize) -> usize {
        self.states[state].row_bytes
    }

    /// Elements of a token's row, or of a sequence's, of all heads.
    pub fn row_elems(&self, state: usize) -> usize {
        self.states[state].heads * self.states[state].width
    }

    /// Rows of a head that the state has.
    pub fn slots(&self, state: usize) -> usize {
        self.states[state].slots
    }

    /// The slot of a position of a sequence, for a state that has a row for every token, or of a window of them.
    pub fn slot(&self, state: usize, sequence: &StepSequence<'_>, position: usize) -> usize {
        sequence.slot_in(self.states[state].ring, position)
    }

    /// The bytes of slots `slots` of a head, which are of one block.
    ///
    /// # Safety
    /// Nobody writes to them until the next barrier.
    pub unsafe fn bytes(&self, state: usize, head: usize, slots: Range<usize>) -> &[u8] {
        let rows = &self.states[state];
        let in_one_block = slots.start % rows.block_rows + slots.len() <= rows.block_rows;
        assert!(
            head < rows.heads && slots.end <= rows.slots && in_one_block,
            "slots {slots:?} of {}",
            rows.slots
        );
        let at = rows.at(head, slots.start);
        // SAFETY: the caller's promise.
        unsafe { rows.bytes.read_bytes(at, slots.len() * rows.row_bytes) }
    }

    /// Decodes a head's row.
    ///
    /// # Safety
    /// As [`CpuState::bytes`].
    pub unsafe fn decode(&self, kernels: Kernels, state: usize, head: usize, slot: usize, out: &mut [f32]) {
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.bytes(state, head, slot..slot + 1) };
        self.decode_rows(kernels, state, bytes, out);
    }

    /// Decodes whole rows of a state.
    pub fn decode_rows(&self, kernels: Kernels, state: usize, bytes: &[u8], out: &mut [f32]) {
        match self.states[state].kv_type {
            KvType::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
            KvType::F16 => kernels.widen_halves(bytemuck::cast_slice(bytes), out),
            KvType::Q8_0 => Format::Q8_0.decode_row(bytes, out),
        }
    }

    /// Encodes a token's rows of the heads from `first_head` on. Halves round to nearest even; q8_0 blocks are those of
    /// `KvType::round_row`.
    ///
    /// # Safety
    /// Nobody else touches that slot of those heads until the next barrier.
    pub unsafe fn encode(&self, kernels: Kernels, state: usize, first_head: usize, slot: usize, x: &[f32]) {
        let rows = &self.states[state];
        for (i, x) in x.chunks_exact(rows.width).enumerate() {
            assert!(first_head + i < rows.heads && slot < rows.slots, "slot {slot} of {}", rows.slots);
            let at = rows.at(first_head + i, slot);
            // SAFETY: the caller excludes everybody else from the row.
            let bytes = unsafe { rows.bytes.write_bytes(at, rows.row_bytes) };
            match rows.kv_type {
                KvType::F32 => bytes.copy_from_slice(bytemuck::cast_slice(x)),
                KvType::F16 => bytemuck::cast_slice_mut::<u8, f16>(bytes).convert_from_f32_slice(x),
                KvType::Q8_0 => {
                    let (mut q, mut scale, mut s16, mut s32) = ([0i8; 32], [0.0], [0; 2], [0]);
                    for (x, block) in x.chunks_exact(32).zip(bytes.chunks_exact_mut(34)) {
                        kernels.quantize(x, 32, &mut q, &mut scale, &mut s16, &mut s32);
                        block[..2].copy_from_slice(&f16::from_f32(scale[0]).to_le_bytes());
                        block[2..].copy_from_slice(bytemuck::cast_slice(&q));
                    }
                }
            }
        }
    }

    /// Elements of a sequence's row, for a state that has one for each.
    ///
    /// # Safety
    /// Nobody else touches them until the next barrier.
    #[allow(clippy::mut_from_ref)] // as all shared memory here: the caller excludes everybody else
    pub unsafe fn row_mut(&self, state: usize, place: usize, elems: Range<usize>) -> &mut [f32] {
        let rows = &self.states[state];
        let row_elems = rows.heads * rows.width;
        assert!(
            rows.block_rows == 1 && place < rows.slots && elems.end <= row_elems,
            "place {place} of {}",
            rows.slots
        );
        // SAFETY: the caller's promise.
        bytemuck::cast_slice_mut(unsafe {
            rows.bytes.write_bytes(4 * (place * row_elems + elems.start), 4 * elems.len())
        })
    }

    /// Slots of a state as f32, `[slots, heads · width]`, between steps: launches have a state only while [`Recorder::run`]
    /// borrows it mutably.
    ///
    /// [`Recorder::run`]: moe_run_runtime::runner::Recorder::run
    pub fn read(&self, kernels: Kernels, state: usize, slots: Range<usize>) -> Vec<f32> {
        let (heads, width) = (self.states[state].heads, self.states[state].width);
        let mut out = vec![0.0; slots.len() * heads * width];
        for (slot, row) in slots.zip(out.chunks_exact_mut(heads * width)) {
            for (head, out) in row.chunks_exact_mut(width).enumerate() {
                // SAFETY: no step runs.
                unsafe { self.decode(kernels, state, head, slot, out) };
            }
        }
        out
    }

    /// Replaces slots of a state from `first` on.
    pub fn write(&mut self, kernels: Kernels, state: usize, first: usize, rows: &[f32]) {
        let row_elems = self.states[state].heads * self.states[state].width;
        for (i, row) in rows.chunks_exact(row_elems).enumerate() {
            // SAFETY: `&mut self`.
            unsafe { self.encode(kernels, state, 0, first + i, row) };
        }
    }
}

impl State for CpuState {
    fn capacity_tokens(&self) -> usize {
        self.size.tokens
    }

    fn rings(&self) -> &[Option<Ring>] {
        &self.rings
    }

    fn size_bytes(&self) -> u64 {
        self.states.iter().map(|s| (s.bytes.len() * size_of::<u32>()) as u64).sum()
    }

    fn max_sequences(&self) -> usize {
        self.size.sequences
    }

    fn shares_blocks(&self) -> bool {
        true
    }

    fn block_bytes(&self) -> Option<usize> {
        Some(self.states.iter().filter(|s| s.is_in_blocks()).map(StateRows::block_bytes).sum())
    }

    fn read_block(&self, block: u32, out: &mut Vec<u8>) {
        for rows in self.states.iter().filter(|s| s.is_in_blocks()) {
            let bytes = rows.block_bytes();
            // SAFETY: no step runs: launches have a state only while `Recorder::run` borrows it mutably.
            out.extend_from_slice(unsafe { rows.bytes.read_bytes(block as usize * bytes, bytes) });
        }
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        let mut rest = bytes;
        for rows in self.states.iter().filter(|s| s.is_in_blocks()) {
            let (rows_bytes, behind) = rest.split_at(rows.block_bytes().min(rest.len()));
            // SAFETY: `&mut self`.
            unsafe { rows.bytes.write_bytes(block as usize * rows.block_bytes(), rows_bytes.len()) }
                .copy_from_slice(rows_bytes);
            rest = behind;
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
