//! `Format::decode_row`: the one place where a format is turned into the function that decodes it.

use bytemuck::Pod;

use super::*;

/// Decodes a row of blocks. `bytes` and `out` agree, as `Format::decode_row` has checked.
fn decode_blocks<B: Pod, const N: usize>(bytes: &[u8], out: &mut [f32], decode: fn(&B, &mut [f32; N])) {
    const { assert!(align_of::<B>() == 1) };
    let blocks: &[B] = bytemuck::cast_slice(bytes);
    let (out, _) = out.as_chunks_mut::<N>();
    for (block, y) in blocks.iter().zip(out) {
        decode(block, y);
    }
}

impl Format {
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
            Format::Q4_0 => decode_blocks(bytes, out, q4_0::decode),
            Format::Q4_1 => decode_blocks(bytes, out, q4_1::decode),
            Format::Q5_0 => decode_blocks(bytes, out, q5_0::decode),
            Format::Q5_1 => decode_blocks(bytes, out, q5_1::decode),
            Format::Q8_0 => decode_blocks(bytes, out, q8_0::decode),
            Format::Q2K => decode_blocks(bytes, out, q2_k::decode),
            Format::Q3K => decode_blocks(bytes, out, q3_k::decode),
            Format::Q4K => decode_blocks(bytes, out, q4_k::decode),
            Format::Q5K => decode_blocks(bytes, out, q5_k::decode),
            Format::Q6K => decode_blocks(bytes, out, q6_k::decode),
            Format::Iq4Nl => decode_blocks(bytes, out, iq4_nl::decode),
            Format::Iq4Xs => decode_blocks(bytes, out, iq4_xs::decode),
            Format::Mxfp4 => decode_blocks(bytes, out, mxfp4::decode),
        }
    }
}
