//! Stage 6: the KV cache of the CPU: for each declared state, rows of one token, stored as the KV type says.

use super::kernels::{Kernels, PANEL_ROWS};
use super::memory::Shared;
use crate::error::BackendError;
use crate::executable::{KvType, State};
use half::f16;
use half::slice::HalfFloatSliceExt;
use moe_run_graph::ir::StateDecl;
use moe_run_graph::quant::Format;
use std::any::Any;
use std::ops::Range;

/// One declared state: `[heads][slots][width]`, so that a head's rows follow each other.
struct StateRows {
    heads: usize,
    width: usize,
    slots: usize,
    row_bytes: usize,
    bytes: Shared<u32>,
}

/// All of a session's states.
pub struct CpuState {
    kv_type: KvType,
    capacity_tokens: usize,
    states: Vec<StateRows>,
}

impl CpuState {
    /// Room for `capacity_tokens` tokens of heads that are whole blocks of the KV type.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub fn new(
        decls: &[StateDecl],
        kv_type: KvType,
        capacity_tokens: usize,
    ) -> Result<CpuState, BackendError> {
        // Whole panels, so that keys are always read 16 rows at a time.
        let rows = capacity_tokens.next_multiple_of(PANEL_ROWS);
        let mut states = Vec::with_capacity(decls.len());
        for decl in decls {
            let row_bytes = kv_type.row_bytes(decl.width);
            let total = rows.checked_mul(row_bytes).and_then(|n| n.checked_mul(decl.heads));
            let words = total.map(|n| n.div_ceil(size_of::<u32>()));
            let bytes = words.and_then(Shared::try_zeroed).ok_or_else(|| BackendError::OutOfMemory {
                what: format!(
                    "the KV cache: {rows} slots of {} bytes in each of {} states",
                    row_bytes * decl.heads,
                    decls.len()
                ),
                wanted_bytes: (rows as u64)
                    .saturating_mul((row_bytes * decl.heads) as u64)
                    .saturating_mul(decls.len() as u64),
                available_bytes: 0,
                advice: "lower --ctx-size, or take --kv-type q8_0".into(),
            })?;
            states.push(StateRows { heads: decl.heads, width: decl.width, slots: rows, row_bytes, bytes });
        }
        Ok(CpuState { kv_type, capacity_tokens, states })
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

    /// The bytes of slots `slots` of a head; they may reach past the capacity, to a multiple of 16.
    ///
    /// # Safety
    /// Nobody writes to them until the next barrier.
    pub unsafe fn bytes(&self, state: usize, head: usize, slots: Range<usize>) -> &[u8] {
        let rows = &self.states[state];
        assert!(head < rows.heads && slots.end <= rows.slots, "slots {slots:?} of {}", rows.slots);
        let at = (head * rows.slots + slots.start) * rows.row_bytes;
        // SAFETY: the caller's promise.
        unsafe { rows.bytes.read_bytes(at, slots.len() * rows.row_bytes) }
    }

    /// Decodes a head's row.
    ///
    /// # Safety
    /// As [`CpuState::bytes`].
    pub unsafe fn decode(&self, kernels: Kernels, state: usize, head: usize, slot: usize, out: &mut [f32]) {
        // SAFETY: the caller's promise.
        self.decode_rows(kernels, unsafe { self.bytes(state, head, slot..slot + 1) }, out);
    }

    /// Decodes whole rows.
    pub fn decode_rows(&self, kernels: Kernels, bytes: &[u8], out: &mut [f32]) {
        match self.kv_type {
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
            let at = ((first_head + i) * rows.slots + slot) * rows.row_bytes;
            // SAFETY: the caller excludes everybody else from the row.
            let bytes = unsafe { rows.bytes.write_bytes(at, rows.row_bytes) };
            match self.kv_type {
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

    /// Slots of a state as f32, `[slots, heads · width]`. The state is borrowed alone, so nobody else touches it.
    pub fn read(&mut self, kernels: Kernels, state: usize, slots: Range<usize>) -> Vec<f32> {
        let (heads, width) = (self.states[state].heads, self.states[state].width);
        let mut out = vec![0.0; slots.len() * heads * width];
        for (slot, row) in slots.zip(out.chunks_exact_mut(heads * width)) {
            for (head, out) in row.chunks_exact_mut(width).enumerate() {
                // SAFETY: `&mut self`.
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
        self.capacity_tokens
    }

    fn size_bytes(&self) -> u64 {
        self.states.iter().map(|s| (s.bytes.len() * size_of::<u32>()) as u64).sum()
    }

    fn truncate(&mut self, _len_tokens: usize) -> Result<(), BackendError> {
        // Attention never reads a slot beyond the query's position: rows past the end need no clearing.
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
