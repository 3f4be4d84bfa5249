//! Stage 5, wgpu: values and the cache while a step is held between two launches.

use super::executable::WgpuExecutable;
use super::ops::row_words;
use super::state::WgpuState;
use half::f16;
use moe_run_graph::ir::{StateId, StepSizes, ValueId};
use moe_run_graph::quant::{ActQ8x32, activation};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, KvType, TensorData, ValueAccess};
use std::ops::Range;

/// A step that waits behind (or before) one of its launches.
pub(super) struct Held<'a> {
    pub run: &'a mut WgpuExecutable,
    pub state: &'a WgpuState,
    pub program: usize,
    pub sizes: StepSizes,
    /// The launch that is next, or has just run.
    pub launch: usize,
}

impl Held<'_> {
    /// Fails for a value whose place holds another one by now, or not yet it.
    fn alive(&self, value: ValueId) -> Result<(), BackendError> {
        let slot = self.run.programs[self.program].plan.memory.slot(value);
        match slot {
            Some(slot) if self.launch < slot.first_launch || self.launch > slot.last_launch => {
                Err(BackendError::Value {
                    value: value.to_string(),
                    detail: format!(
                        "its buffer holds it from launch {} to {}, not at {}",
                        slot.first_launch, slot.last_launch, self.launch
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    /// Row length in elements and words of a state, once the slots are known to exist.
    fn rows(&self, state: StateId, slots: &Range<usize>) -> Result<(usize, usize), BackendError> {
        let capacity = self.run.programs[self.program].plan.max_sizes.cached;
        if slots.start > slots.end || slots.end > capacity {
            return Err(BackendError::Value {
                value: state.to_string(),
                detail: format!("slots {slots:?} of {capacity}"),
            });
        }
        let elems = self.run.programs[self.program].plan.graph.state(state).row_elems();
        Ok((elems, row_words(self.run.kv_type(), elems)))
    }
}

impl ValueAccess for Held<'_> {
    fn sizes(&self) -> StepSizes {
        self.sizes
    }

    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError> {
        self.alive(value)?;
        self.run.read_value(self.program, self.sizes, value)
    }

    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError> {
        let wanted = self.run.programs[self.program].plan.graph.value(value).shape.resolve(self.sizes);
        let Some(at) = self.run.value_at(self.program, value) else {
            return Err(BackendError::Value {
                value: value.to_string(),
                detail: "the plan does not store it".into(),
            });
        };
        if tensor.shape != wanted || tensor.data.len() != wanted.iter().product::<usize>() {
            return Err(BackendError::Value {
                value: value.to_string(),
                detail: format!("shape {:?}, wanted {wanted:?}", tensor.shape),
            });
        }
        let words: Vec<u32> = match &tensor.data {
            TensorData::F32(data) => data.iter().map(|v| v.to_bits()).collect(),
            TensorData::U32(data) => data.clone(),
        };
        self.run.write_words(at, &words);
        Ok(())
    }

    fn read_state(&mut self, state: StateId, slots: Range<usize>) -> Result<Vec<f32>, BackendError> {
        let (elems, words) = self.rows(state, &slots)?;
        let buffer = &self.state.buffers[state.index()];
        let rows = self.run.read_words(Some(buffer), (slots.start * words) as u64, slots.len() * words)?;
        let kv_type = self.run.kv_type();
        Ok(rows.chunks_exact(words).flat_map(|row| decode_row(kv_type, row, elems)).collect())
    }

    fn write_state(&mut self, state: StateId, first_slot: usize, rows: &[f32]) -> Result<(), BackendError> {
        let elems = self.rows(state, &(0..0))?.0;
        let (elems, words) = self.rows(state, &(first_slot..first_slot + rows.len() / elems))?;
        let kv_type = self.run.kv_type();
        let encoded: Vec<u32> = rows.chunks_exact(elems).flat_map(|row| encode_row(kv_type, row)).collect();
        let at = (first_slot * words * 4) as u64;
        self.run.device.queue.write_buffer(
            &self.state.buffers[state.index()],
            at,
            bytemuck::cast_slice(&encoded),
        );
        Ok(())
    }
}

/// A row of the cache as kv_write.wgsl stores it → f32.
fn decode_row(kv_type: KvType, row: &[u32], elems: usize) -> Vec<f32> {
    let halves: &[f16] = bytemuck::cast_slice(row);
    match kv_type {
        KvType::F32 => row.iter().map(|w| f32::from_bits(*w)).collect(),
        KvType::F16 => halves.iter().map(|h| h.to_f32()).collect(),
        KvType::Q8_0 => {
            let bytes: &[i8] = bytemuck::cast_slice(row);
            let scales = &halves[elems / 2..];
            bytes[..elems].iter().enumerate().map(|(i, q)| f32::from(*q) * scales[i / 32].to_f32()).collect()
        }
    }
}

/// f32 → a row of the cache as kv_write.wgsl stores it.
fn encode_row(kv_type: KvType, row: &[f32]) -> Vec<u32> {
    let mut words = vec![0u32; row_words(kv_type, row.len())];
    match kv_type {
        KvType::F32 => words.iter_mut().zip(row).for_each(|(w, x)| *w = x.to_bits()),
        KvType::F16 => {
            let halves: &mut [f16] = bytemuck::cast_slice_mut(&mut words);
            halves.iter_mut().zip(row).for_each(|(h, x)| *h = f16::from_f32(*x));
        }
        KvType::Q8_0 => {
            let mut blocks = vec![ActQ8x32 { scale: 0.0, q: [0; 32] }; row.len() / 32];
            activation::quantize_x32(row, &mut blocks);
            let (quants, scales) = words.split_at_mut(row.len() / 4);
            let quants: &mut [i8] = bytemuck::cast_slice_mut(quants);
            let scales: &mut [f16] = bytemuck::cast_slice_mut(scales);
            for (i, block) in blocks.iter().enumerate() {
                quants[i * 32..][..32].copy_from_slice(&block.q);
                scales[i] = f16::from_f32(block.scale);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_as_the_cache_type_says() {
        let row: Vec<f32> = (0..96).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        for &kv_type in KvType::ALL {
            let mut rounded = row.clone();
            kv_type.round_row(&mut rounded);
            assert_eq!(decode_row(kv_type, &encode_row(kv_type, &row), 96), rounded, "{kv_type}");
        }
    }
}
