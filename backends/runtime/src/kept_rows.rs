//! Rows that were read from a state to be put back later, no larger than they must be.

use crate::options::KvType;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Rows of a state, exact.
#[derive(Debug, Clone, PartialEq)]
pub enum KeptRows {
    /// As floats: rows of a sequence's own state, and what other types are read back as.
    F32(Box<[f32]>),
    /// As the state stores them.
    F16(Box<[f16]>),
}

impl KeptRows {
    /// Rows that a state stores in this type.
    #[must_use]
    pub fn of(kv_type: KvType, rows: Vec<f32>) -> KeptRows {
        match kv_type {
            KvType::F16 => {
                let mut halves = vec![f16::ZERO; rows.len()].into_boxed_slice();
                halves.convert_from_f32_slice(&rows);
                KeptRows::F16(halves)
            }
            KvType::F32 | KvType::Q8_0 => KeptRows::F32(rows.into()),
        }
    }

    /// Bytes of so many elements of a state that stores this type.
    #[must_use]
    pub fn bytes_of(kv_type: KvType, elems: usize) -> usize {
        match kv_type {
            KvType::F16 => 2 * elems,
            KvType::F32 | KvType::Q8_0 => 4 * elems,
        }
    }

    /// As floats.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            KeptRows::F32(rows) => rows.to_vec(),
            KeptRows::F16(rows) => rows.to_f32_vec(),
        }
    }

    /// Little endian, for files.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            KeptRows::F32(rows) => rows.iter().flat_map(|x| x.to_le_bytes()).collect(),
            KeptRows::F16(rows) => rows.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// What [`KeptRows::to_bytes`] gave of a state that stores this type.
    #[must_use]
    pub fn from_bytes(kv_type: KvType, bytes: &[u8]) -> KeptRows {
        match kv_type {
            KvType::F16 => {
                KeptRows::F16(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect())
            }
            KvType::F32 | KvType::Q8_0 => {
                KeptRows::F32(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a state of any type is read back as is kept and put back exactly.
    #[test]
    fn rows_are_kept_exactly() {
        let rows: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        for &kv_type in KvType::ALL {
            let mut stored = rows.clone();
            kv_type.round_row(&mut stored);
            let kept = KeptRows::of(kv_type, stored.clone());
            let bytes = kept.to_bytes();
            assert_eq!(bytes.len(), KeptRows::bytes_of(kv_type, rows.len()));
            assert_eq!(KeptRows::from_bytes(kv_type, &bytes), kept);
            let mut again = kept.to_f32();
            assert_eq!(again, stored, "{kv_type}");
            kv_type.round_row(&mut again);
            assert_eq!(again, stored, "{kv_type}: rounded once more");
        }
    }
}
