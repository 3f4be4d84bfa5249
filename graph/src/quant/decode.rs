//! The one place where a format is turned into the functions that take its blocks apart.

use bytemuck::Pod;

use super::*;

/// Takes one block apart. `bytes` is a block, as the callers have checked.
fn block<B: Pod>(bytes: &[u8], out: &mut Integers, integers: fn(&B, &mut Integers)) {
    const { assert!(align_of::<B>() == 1) };
    integers(bytemuck::from_bytes(bytes), out);
}

impl Format {
    /// Elements under one scale of a quantized block: 16 or 32.
    const fn sub_elems(self) -> usize {
        match self {
            Format::Q2K | Format::Q3K | Format::Q6K => 16,
            _ => 32,
        }
    }

    /// A block's integers under their scales; `None` for F32, F16 and BF16, which have none. Bytes that are not one block
    /// are a mistake of the caller, and panic.
    pub fn integers(self, bytes: &[u8]) -> Option<Integers> {
        assert_eq!(bytes.len(), self.block_bytes(), "{self}: one block");
        let mut out = Integers::new(self.sub_elems());
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Q4_0 => block(bytes, &mut out, q4_0::integers),
            Format::Q4_1 => block(bytes, &mut out, q4_1::integers),
            Format::Q5_0 => block(bytes, &mut out, q5_0::integers),
            Format::Q5_1 => block(bytes, &mut out, q5_1::integers),
            Format::Q8_0 => block(bytes, &mut out, q8_0::integers),
            Format::Q2K => block(bytes, &mut out, q2_k::integers),
            Format::Q3K => block(bytes, &mut out, q3_k::integers),
            Format::Q4K => block(bytes, &mut out, q4_k::integers),
            Format::Q5K => block(bytes, &mut out, q5_k::integers),
            Format::Q6K => block(bytes, &mut out, q6_k::integers),
            Format::Iq4Nl => block(bytes, &mut out, iq4_nl::integers),
            Format::Iq4Xs => block(bytes, &mut out, iq4_xs::integers),
            Format::Mxfp4 => block(bytes, &mut out, mxfp4::integers),
        }
        Some(out)
    }

    /// Decodes a row: the definition of the format.
    ///
    /// `bytes` holds whole blocks, `out` as many elements as they have. Lengths that do not agree are a mistake of the
    /// caller, and panic.
    pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(bytes.len()), "{self}: {} elements", out.len());
        match self {
            Format::F32 => f32::decode_row(bytes, out),
            Format::F16 => f16::decode_row(bytes, out),
            Format::Bf16 => bf16::decode_row(bytes, out),
            _ => {
                let blocks = bytes.chunks_exact(self.block_bytes());
                for (bytes, out) in blocks.zip(out.chunks_exact_mut(self.block_elems())) {
                    if let Some(block) = self.integers(bytes) {
                        block.values(out);
                    }
                }
            }
        }
    }
}
