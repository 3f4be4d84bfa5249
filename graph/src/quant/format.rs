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
    /// 256 values as rows of eight from a grid of 256; 8 sub-blocks with 4-bit scales.
    Iq2Xxs,
    /// 256 values as rows of eight from a grid of 512; 16 sub-blocks with 4-bit scales.
    Iq2Xs,
    /// 256 values as rows of eight from a grid of 1024; 16 sub-blocks with 4-bit scales.
    Iq2S,
    /// 256 values as rows of four from a grid of 256; 8 sub-blocks with 4-bit scales.
    Iq3Xxs,
    /// 256 values as rows of four from a grid of 512; 8 sub-blocks with 4-bit scales.
    Iq3S,
    /// 256 values as rows of eight from a grid of 2048, moved by an eighth; 8 sub-blocks with 3-bit scales.
    Iq1S,
    /// 256 values as rows of eight from the same grid, each moved by an eighth; 16 sub-blocks with 3-bit scales.
    Iq1M,
    /// 256 × −1, 0 or 1, five to a byte; f16 scale.
    Tq1_0,
    /// 256 × 2 bits, f16 scale; values −1..2.
    Tq2_0,
    /// 64 × 4-bit floats (E2M1); 4 sub-blocks with scales that are 8-bit floats (E4M3).
    Nvfp4,
    /// 128 × 1 bit, f16 scale; values −1 and 1.
    Q1_0,
    /// 64 × 2 bits, f16 scale; values −1..2.
    Q2_0,
}

/// A tensor type or a format's name that this project does not read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("tensor type {found} is not supported; supported: {}", Format::names())]
pub struct UnknownFormat {
    /// The type's name where ggml defines one ("Q8_K"), else its number or the text given.
    pub found: String,
}

/// Elements in a super-block: of the K, TQ and most IQ formats.
const SUPER_ELEMS: usize = 256;

impl Format {
    /// Every format, in the order of their declaration.
    pub const ALL: [Format; 28] = [
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
        Format::Iq2Xxs,
        Format::Iq2Xs,
        Format::Iq2S,
        Format::Iq3Xxs,
        Format::Iq3S,
        Format::Iq1S,
        Format::Iq1M,
        Format::Tq1_0,
        Format::Tq2_0,
        Format::Nvfp4,
        Format::Q1_0,
        Format::Q2_0,
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
            Format::Nvfp4 | Format::Q2_0 => 64,
            Format::Q1_0 => 128,
            Format::Q2K
            | Format::Q3K
            | Format::Q4K
            | Format::Q5K
            | Format::Q6K
            | Format::Iq4Xs
            | Format::Iq2Xxs
            | Format::Iq2Xs
            | Format::Iq2S
            | Format::Iq3Xxs
            | Format::Iq3S
            | Format::Iq1S
            | Format::Iq1M
            | Format::Tq1_0
            | Format::Tq2_0 => SUPER_ELEMS,
        }
    }

    /// Elements that [`Integers`](super::Integers) hold at once, all under one floating-point scale: a super-block's 256, NVFP4's 16, 32 of
    /// the other block formats (Q1_0 and Q2_0 repeat theirs); 1 for the plain floats. An exact sum of products with
    /// 8-bit activations is no longer than that.
    pub const fn scale_elems(self) -> usize {
        match (self, self.block_elems()) {
            (Format::Nvfp4, _) => 16,
            (_, elems @ (1 | SUPER_ELEMS)) => elems,
            _ => 32,
        }
    }

    /// Whether blocks have 256 elements, whose sub-blocks' scales are integers.
    pub const fn is_super_block(self) -> bool {
        self.block_elems() == SUPER_ELEMS
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
            Format::Iq2Xxs => 2 + 64,
            Format::Iq2Xs => 2 + 64 + 8,
            Format::Iq2S => 2 + 32 + 32 + 8 + 8,
            Format::Iq3Xxs => 2 + 64 + 32,
            Format::Iq3S => 2 + 64 + 8 + 32 + 4,
            Format::Iq1S => 2 + 32 + 16,
            Format::Iq1M => 32 + 16 + 8,
            Format::Tq1_0 => 48 + 4 + 2,
            Format::Tq2_0 => 64 + 2,
            Format::Nvfp4 => 4 + 32,
            Format::Q1_0 | Format::Q2_0 => 2 + 16,
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
            Format::Iq2Xxs => "IQ2_XXS",
            Format::Iq2Xs => "IQ2_XS",
            Format::Iq2S => "IQ2_S",
            Format::Iq3Xxs => "IQ3_XXS",
            Format::Iq3S => "IQ3_S",
            Format::Iq1S => "IQ1_S",
            Format::Iq1M => "IQ1_M",
            Format::Tq1_0 => "TQ1_0",
            Format::Tq2_0 => "TQ2_0",
            Format::Nvfp4 => "NVFP4",
            Format::Q1_0 => "Q1_0",
            Format::Q2_0 => "Q2_0",
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
            Format::Iq2Xxs => 16,
            Format::Iq2Xs => 17,
            Format::Iq3Xxs => 18,
            Format::Iq1S => 19,
            Format::Iq3S => 21,
            Format::Iq2S => 22,
            Format::Iq1M => 29,
            Format::Tq1_0 => 34,
            Format::Tq2_0 => 35,
            Format::Nvfp4 => 40,
            Format::Q1_0 => 41,
            Format::Q2_0 => 42,
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
        assert_eq!(Format::from_ggml_type(15).unwrap_err().found, "Q8_K");
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
