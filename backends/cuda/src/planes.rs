//! How a matrix lies on the device: as in the file, its blocks sorted into planes, or its rows before the grid that they are
//! looked up in.
//!
//! Blocks of Q6_K (210 bytes), Q8_0 (34) and MXFP4 (17) are no multiple of 16 bytes long, so a GPU could read them two
//! bytes at a time only. Here the parts of all blocks of a row stand together, each part aligned to 16 bytes; the bytes are the
//! same. So are those of Q4_K and Q5_K, but for their scales and minima: eight pairs of six-bit numbers in twelve bytes, which
//! every lane of a warp would take apart again, are bytes here, four more a block. A tensor of a format with a grid ends with the grid's digits, and each of its rows begins with the distance to it: a
//! kernel that is given a row has both. Input: rows as in the file. Output: rows as kernels/common/formats.cuh reads them.

use moe_run_graph::quant::{Format, grids};
use std::ops::Range;

/// Planes begin, and rows end, at multiples of this.
const ALIGN_BYTES: usize = 16;

/// A part of each block.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plane {
    /// Bytes of the block as they are.
    Bytes(Range<usize>),
    /// Scale and minimum of each of eight groups, a byte each, of the twelve bytes that the six-bit numbers lie in.
    Pairs(Range<usize>),
}

impl Plane {
    /// Of one block on the device.
    fn bytes(&self) -> usize {
        match self {
            Plane::Bytes(range) => range.len(),
            Plane::Pairs(_) => 16,
        }
    }

    fn write(&self, block: &[u8], out: &mut [u8]) {
        match self {
            Plane::Bytes(range) => out.copy_from_slice(&block[range.clone()]),
            Plane::Pairs(range) => pairs(&block[range.clone()], out),
        }
    }
}

/// Scale and minimum of eight groups, as graph/src/quant/q4_k.rs reads them: those of groups 0 to 3 are the low six bits of bytes
/// 0 to 3 and 4 to 7, those of the others the nibbles of bytes 8 to 11 under those bytes' top bits.
fn pairs(packed: &[u8], out: &mut [u8]) {
    for (g, pair) in out.chunks_exact_mut(2).enumerate() {
        let [scale, minimum] = match g {
            0..4 => [packed[g] & 63, packed[g + 4] & 63],
            _ => {
                let low = packed[g + 4];
                [low & 15 | packed[g - 4] >> 6 << 4, low >> 4 | packed[g] >> 6 << 4]
            }
        };
        pair.copy_from_slice(&[scale, minimum]);
    }
}

/// The parts of a block, in the order of the planes.
fn planes(format: Format) -> &'static [Plane] {
    use Plane::{Bytes, Pairs};
    match format {
        // nibbles, scales and minima, d and dmin
        Format::Q4K => &[Bytes(16..144), Pairs(4..16), Bytes(0..4)],
        // nibbles, fifth bits, scales and minima, d and dmin
        Format::Q5K => &[Bytes(48..176), Bytes(16..48), Pairs(4..16), Bytes(0..4)],
        // low bits, high bits, scales, d
        Format::Q6K => &[Bytes(0..128), Bytes(128..192), Bytes(192..208), Bytes(208..210)],
        // codes, d
        Format::Q8_0 => &[Bytes(2..34), Bytes(0..2)],
        // nibbles, exponent
        Format::Mxfp4 => &[Bytes(1..17), Bytes(0..1)],
        _ => &[],
    }
}

/// Bytes of a block in its planes.
fn planes_bytes(format: Format) -> usize {
    planes(format).iter().map(Plane::bytes).sum()
}

/// What a row with a grid begins with: the distance in bytes from the row to the grid, a u64.
const LEADER_BYTES: usize = 8;

/// What a tensor of the format ends with.
pub(super) fn grid(format: Format) -> &'static [u8] {
    bytemuck::cast_slice(grids::digits_of(format))
}

/// Bytes of a row of `elems` elements on the device; 0 if that is no whole number of blocks.
pub(super) fn row_bytes(format: Format, elems: usize) -> usize {
    match format.row_bytes(elems) {
        None => 0,
        Some(bytes) if !grid(format).is_empty() => LEADER_BYTES + bytes.next_multiple_of(LEADER_BYTES),
        Some(bytes) if planes(format).is_empty() => bytes,
        Some(bytes) => (bytes / format.block_bytes() * planes_bytes(format)).next_multiple_of(ALIGN_BYTES),
    }
}

/// Sorts whole rows of the file into planes; `out` holds as many rows of [`row_bytes`]. `rows_left` are those of the tensor
/// from the first of these on.
pub(super) fn arrange(format: Format, elems: usize, rows_left: usize, rows: &[u8], out: &mut [u8]) {
    let (from, to) = (format.row_bytes(elems).unwrap_or(0), row_bytes(format, elems));
    if !grid(format).is_empty() && from > 0 {
        for (i, (row, out)) in rows.chunks_exact(from).zip(out.chunks_exact_mut(to)).enumerate() {
            let distance = ((rows_left - i) * to) as u64;
            let (leader, rest) = out.split_at_mut(LEADER_BYTES);
            leader.copy_from_slice(&distance.to_le_bytes());
            rest[..from].copy_from_slice(row);
            rest[from..].fill(0);
        }
        return;
    }
    if planes(format).is_empty() || from == 0 {
        out[..rows.len()].copy_from_slice(rows);
        return;
    }
    let (block_bytes, blocks) = (format.block_bytes(), elems / format.block_elems());
    for (row, out) in rows.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        let mut at = 0;
        for plane in planes(format) {
            for (block, part) in row.chunks_exact(block_bytes).zip(out[at..].chunks_exact_mut(plane.bytes()))
            {
                plane.write(block, part);
            }
            at += plane.bytes() * blocks;
        }
        out[at..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_a_grid_lead_to_it() {
        let (format, elems) = (Format::Iq3S, 512);
        let to = row_bytes(format, elems);
        assert_eq!((to, grid(format).len()), (8 + 224, 1024));
        let rows: Vec<u8> = (0..3 * 220).map(|i| (i % 251) as u8).collect();
        let mut out = vec![0xa5; 3 * to];
        arrange(format, elems, 10, &rows, &mut out);
        for (i, (row, out)) in rows.chunks(220).zip(out.chunks(to)).enumerate() {
            assert_eq!(out[..8], (((10 - i) * to) as u64).to_le_bytes());
            assert_eq!((&out[8..228], &out[228..]), (row, &[0; 4][..]));
        }
    }

    #[test]
    fn every_byte_of_every_block_has_one_place() {
        for format in
            [Format::Q4K, Format::Q5K, Format::Q6K, Format::Q8_0, Format::Mxfp4, Format::Q2K, Format::F16]
        {
            let elems = 3 * 256;
            let (from, to) = (format.row_bytes(elems).unwrap(), row_bytes(format, elems));
            let parts = planes(format);
            assert!(to >= from && (parts.is_empty() || to % ALIGN_BYTES == 0), "{format:?}");
            let rows: Vec<u8> = (0..2 * from).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut out = vec![0xa5; 2 * to];
            arrange(format, elems, 2, &rows, &mut out);
            for (row, out) in rows.chunks_exact(from).zip(out.chunks_exact(to)) {
                if parts.is_empty() {
                    assert_eq!(row, &out[..from]);
                    continue;
                }
                let (mut at, mut covered) = (0, vec![0; format.block_bytes()]);
                for plane in parts {
                    let (Plane::Bytes(range) | Plane::Pairs(range)) = plane;
                    covered[range.clone()].iter_mut().for_each(|n| *n += 1);
                    for (i, block) in row.chunks_exact(format.block_bytes()).enumerate() {
                        let found = &out[at + i * plane.bytes()..][..plane.bytes()];
                        if let Plane::Bytes(range) = plane {
                            assert_eq!(&block[range.clone()], found, "{format:?} {i}");
                        }
                    }
                    at += plane.bytes() * (from / format.block_bytes());
                }
                assert!(covered.iter().all(|n| *n == 1), "{format:?}");
                assert!(out[at..].iter().all(|b| *b == 0));
            }
        }
    }

    /// Against the scalar decode: with every code 1 and d = dmin = 1 an element is scale − minimum, without codes −minimum.
    #[test]
    fn scales_and_minima_are_those_of_the_decode() {
        let one = half::f16::ONE.to_le_bytes();
        for seed in 0..50u8 {
            let mut block = vec![0u8; Format::Q4K.block_bytes()];
            block[..2].copy_from_slice(&one);
            block[2..4].copy_from_slice(&one);
            for (i, byte) in block[4..16].iter_mut().enumerate() {
                *byte = seed.wrapping_mul(37).wrapping_add((i as u8).wrapping_mul(101)) ^ (seed << 3);
            }
            let (mut minima, mut both) = ([0.0f32; 256], [0.0f32; 256]);
            Format::Q4K.decode_row(&block, &mut minima);
            block[16..].fill(0x11);
            Format::Q4K.decode_row(&block, &mut both);
            let mut out = [0; 16];
            pairs(&block[4..16], &mut out);
            for (g, pair) in out.chunks(2).enumerate() {
                let minimum = -minima[32 * g];
                let wanted = [both[32 * g] + minimum, minimum].map(|v| v as u8);
                assert_eq!(pair, wanted, "{seed} {g}");
            }
        }
    }
}
