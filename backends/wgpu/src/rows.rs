//! Stage 6, wgpu: how states lie on the device: rows of the cache as kv_write.wgsl stores them, and what a sequence has once
//! in f32.

use super::ops::row_words;
use half::f16;
use moe_run_graph::ir::{Lifetime, StateDecl};
use moe_run_graph::quant::{ActQ8x32, activation};
use moe_run_runtime::executable::{KvType, PoolSize};

/// A state's rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateRows {
    pub elems: usize,
    /// 1 for what a sequence has once, those of a ring where only a window is read.
    pub count: usize,
    /// How they are stored.
    pub kv_type: KvType,
}

impl StateRows {
    pub fn of(decl: &StateDecl, kv_type: KvType, size: PoolSize) -> StateRows {
        let kv_type = match decl.lifetime {
            Lifetime::PerToken { .. } => kv_type,
            Lifetime::PerSequence => KvType::F32,
        };
        StateRows { elems: decl.row_elems(), count: size.rows(decl), kv_type }
    }

    /// Words of a row.
    pub fn words(&self) -> usize {
        row_words(self.kv_type, self.elems)
    }
}

/// A row of the cache as kv_write.wgsl stores it → f32.
pub(super) fn decode_row(kv_type: KvType, row: &[u32], elems: usize) -> Vec<f32> {
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
pub(super) fn encode_row(kv_type: KvType, row: &[f32]) -> Vec<u32> {
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
