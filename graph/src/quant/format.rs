//! `Format`: the closed list of tensor formats, with their sizes, names and GGUF type numbers.

use std::fmt;

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::GgmlType;

/// How a tensor's values are stored. A row is a whole number of blocks; blocks of a row are contiguous.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Format {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// 32 × 4 bits, f16 scale; values −8..7.
    Q4_0,
    /// 32 × 4 bits, f16 scale and minimum.
    Q4_1,
    /// 32 × 5 bits, f16 scale; values −16..15.
    Q5_0,
    /// 32 × 5 bits, f16 scale and minimum.
    Q5_1,
    /// 32 × 8 bits, f16 scale.
    Q8_0,
    /// 256 × 2 bits; 16 sub-blocks with 4-bit scales and minima.
    Q2K,
    /// 256 × 3 bits; 16 sub-blocks with 6-bit scales.
    Q3K,
    /// 256 × 4 bits; 8 sub-blocks with 6-bit scales and minima.
    Q4K,
    /// 256 × 5 bits; 8 sub-blocks with 6-bit scales and minima.
    Q5K,
    /// 256 × 6 bits; 16 sub-blocks with 8-bit scales.
    Q6K,
    /// 32 × 4 bits into a table of 16 unequal steps, f16 scale.
    Iq4Nl,
    /// 256 × 4 bits into the same table; 8 sub-blocks with 6-bit scales.
    Iq4Xs,
    /// 32 × 4-bit floats (E2M1) with an 8-bit power-of-two scale: the OCP microscaling format.
    Mxfp4,
}

/// A tensor type or a format's name that this project does not read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("tensor type {found} is not supported; supported: {}", Format::names())]
pub struct UnknownFormat {
    /// The type's name where ggml defines one ("IQ2_XS"), else its number or the text given.
    pub found: String,
}

/// Elements in a super-block of the K and IQ4_XS formats.
const SUPER_ELEMS: usize = 256;

impl Format {
    /// Every format, in the order of their declaration.
    pub const ALL: [Format; 16] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::Mxfp4,
    ];

    /// Elements in one block; 1 for the plain floats.
    pub const fn block_elems(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q4_0
            | Format::Q4_1
            | Format::Q5_0
            | Format::Q5_1
            | Format::Q8_0
            | Format::Iq4Nl
            | Format::Mxfp4 => 32,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K | Format::Iq4Xs => {
                SUPER_ELEMS
            }
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q4_0 | Format::Iq4Nl => 2 + 16,
            Format::Q4_1 => 2 + 2 + 16,
            Format::Q5_0 => 2 + 4 + 16,
            Format::Q5_1 => 2 + 2 + 4 + 16,
            Format::Q8_0 => 2 + 32,
            Format::Q2K => 16 + 64 + 2 + 2,
            Format::Q3K => 32 + 64 + 12 + 2,
            Format::Q4K => 2 + 2 + 12 + 128,
            Format::Q5K => 2 + 2 + 12 + 32 + 128,
            Format::Q6K => 128 + 64 + 16 + 2,
            Format::Iq4Xs => 2 + 2 + 4 + 128,
            Format::Mxfp4 => 1 + 16,
        }
    }

    /// Bytes of a row of `cols_elems` elements; `None` when that is no whole number of blocks or overflows.
    pub const fn row_bytes(self, cols_elems: usize) -> Option<usize> {
        if !cols_elems.is_multiple_of(self.block_elems()) {
            return None;
        }
        (cols_elems / self.block_elems()).checked_mul(self.block_bytes())
    }

    /// Whether values are blocks of small integers (or E2M1 floats) under scales, rather than plain floats.
    pub const fn is_quantized(self) -> bool {
        self.block_elems() > 1
    }

    /// ggml's name: "Q4_K".
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q2K => "Q2_K",
            Format::Q3K => "Q3_K",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
            Format::Iq4Nl => "IQ4_NL",
            Format::Iq4Xs => "IQ4_XS",
            Format::Mxfp4 => "MXFP4",
        }
    }

    /// All names, comma-separated, for messages.
    pub fn names() -> String {
        Format::ALL.map(Format::name).join(", ")
    }

    /// The number that stands for this format in a GGUF tensor table.
    pub const fn ggml_type(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q5_1 => 7,
            Format::Q8_0 => 8,
            Format::Q2K => 10,
            Format::Q3K => 11,
            Format::Q4K => 12,
            Format::Q5K => 13,
            Format::Q6K => 14,
            Format::Iq4Nl => 20,
            Format::Iq4Xs => 23,
            Format::Bf16 => 30,
            Format::Mxfp4 => 39,
        }
    }

    /// The format with this GGUF type number. Errors name the type where ggml defines it.
    pub fn from_ggml_type(number: u32) -> Result<Format, UnknownFormat> {
        Format::ALL
            .into_iter()
            .find(|f| f.ggml_type() == number)
            .ok_or_else(|| UnknownFormat { found: GgmlType::from_number(number).described() })
    }

    /// The format of this name, in any case ("q4_k").
    pub fn parse(name: &str) -> Result<Format, UnknownFormat> {
        Format::ALL
            .into_iter()
            .find(|f| f.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownFormat { found: format!("{name:?}") })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        for f in Format::ALL {
            assert_eq!(Format::from_ggml_type(f.ggml_type()), Ok(f));
            assert_eq!(Format::parse(&f.name().to_lowercase()), Ok(f));
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        assert_eq!(Format::from_ggml_type(17).unwrap_err().found, "IQ2_XS");
        assert_eq!(Format::from_ggml_type(999).unwrap_err().found, "number 999");
        let text = Format::parse("q4_x").unwrap_err().to_string();
        assert!(text.contains("q4_x") && text.contains("Q4_K"), "{text}");
    }

    #[test]
    fn row_bytes_wants_whole_blocks_and_checks_overflow() {
        assert_eq!(Format::Q4K.row_bytes(512), Some(288));
        assert_eq!(Format::Q4K.row_bytes(500), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
        assert_eq!(Format::Q8_0.row_bytes(usize::MAX - 31), None);
    }
}
