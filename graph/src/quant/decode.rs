//! The one place where a format is turned into the functions that take its blocks apart.

use bytemuck::Pod;

use super::*;

/// Takes blocks apart, one after the other in the same place.
fn blocks<B: Pod>(
    bytes: &[u8],
    mut out: Integers,
    integers: impl Fn(&B, &mut Integers),
    mut each: impl FnMut(&Integers),
) {
    const { assert!(align_of::<B>() == 1) };
    for block in bytes.chunks_exact(size_of::<B>()) {
        integers(bytemuck::from_bytes(block), &mut out);
        each(&out);
    }
}

/// As [`blocks`], for blocks that are `parts` times as long as [`Format::scale_elems`].
fn parts<B: Pod>(
    bytes: &[u8],
    parts: usize,
    mut out: Integers,
    integers: impl Fn(&B, usize, &mut Integers),
    mut each: impl FnMut(&Integers),
) {
    const { assert!(align_of::<B>() == 1) };
    for block in bytes.chunks_exact(size_of::<B>()) {
        for part in 0..parts {
            integers(bytemuck::from_bytes(block), part, &mut out);
            each(&out);
        }
    }
}

impl Format {
    /// Elements under one scale of a quantized block: 16 or 32.
    pub(super) const fn sub_elems(self) -> usize {
        match self {
            Format::Q2K
            | Format::Q3K
            | Format::Q6K
            | Format::Iq2Xs
            | Format::Iq2S
            | Format::Iq1M
            | Format::Nvfp4 => 16,
            _ => 32,
        }
    }

    /// Gives a row as integers under their scales, [`Format::scale_elems`] elements at a time; none of F32, F16 and BF16,
    /// which have no such thing.
    /// Bytes that are not whole blocks are a mistake of the caller, and panic.
    pub fn for_each_block(self, bytes: &[u8], each: impl FnMut(&Integers)) {
        assert!(
            bytes.len().is_multiple_of(self.block_bytes()),
            "{self}: {} bytes, no whole blocks",
            bytes.len()
        );
        let out = Integers::new(self.sub_elems());
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => {}
            Format::Q4_0 => blocks(bytes, out, q4_0::integers, each),
            Format::Q4_1 => blocks(bytes, out, q4_1::integers, each),
            Format::Q5_0 => blocks(bytes, out, q5_0::integers, each),
            Format::Q5_1 => blocks(bytes, out, q5_1::integers, each),
            Format::Q8_0 => blocks(bytes, out, q8_0::integers, each),
            Format::Q2K => blocks(bytes, out, q2_k::integers, each),
            Format::Q3K => blocks(bytes, out, q3_k::integers, each),
            Format::Q4K => blocks(bytes, out, q4_k::integers, each),
            Format::Q5K => blocks(bytes, out, q5_k::integers, each),
            Format::Q6K => blocks(bytes, out, q6_k::integers, each),
            Format::Iq4Nl => blocks(bytes, out, iq4_nl::integers, each),
            Format::Iq4Xs => blocks(bytes, out, iq4_xs::integers, each),
            Format::Mxfp4 => blocks(bytes, out, mxfp4::integers, each),
            Format::Iq2Xxs => blocks(bytes, out, iq2_xxs::integers, each),
            Format::Iq2Xs => blocks(bytes, out, iq2_xs::integers, each),
            Format::Iq2S => blocks(bytes, out, iq2_s::integers, each),
            Format::Iq3Xxs => blocks(bytes, out, iq3_xxs::integers, each),
            Format::Iq3S => blocks(bytes, out, iq3_s::integers, each),
            Format::Iq1S => blocks(bytes, out, iq1_s::integers, each),
            Format::Iq1M => blocks(bytes, out, iq1_m::integers, each),
            Format::Tq1_0 => blocks(bytes, out, tq1_0::integers, each),
            Format::Tq2_0 => blocks(bytes, out, tq2_0::integers, each),
            Format::Nvfp4 => parts(bytes, 4, out, nvfp4::integers, each),
            Format::Q1_0 => parts(bytes, 4, out, q1_0::integers, each),
            Format::Q2_0 => parts(bytes, 2, out, q2_0::integers, each),
        }
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
                let mut rest = out.chunks_exact_mut(self.scale_elems());
                self.for_each_block(bytes, |block| rest.by_ref().take(1).for_each(|out| block.values(out)));
            }
        }
    }
}
