//! How a matrix lies on the device: as in the file, its blocks sorted into planes, or its rows before the grid that they are
//! looked up in.
//!
//! Blocks of Q6_K (210 bytes), Q8_0 (34) and MXFP4 (17) are no multiple of 16 bytes long, so a GPU could read them two
//! bytes at a time only. Here the parts of all blocks of a row stand together, each part aligned to 16 bytes; the bytes are the
//! same. A tensor of a format with a grid ends with the grid's digits, and each of its rows begins with the distance to it: a
//! kernel that is given a row has both. Input: rows as in the file. Output: rows as kernels/common/formats.cuh reads them.

use moe_run_graph::quant::{Format, grids};
use std::ops::Range;

/// Planes begin, and rows end, at multiples of this.
const ALIGN_BYTES: usize = 16;

/// The parts of a block, in the order of the planes.
fn planes(format: Format) -> &'static [Range<usize>] {
    match format {
        // low bits, high bits, scales, d
        Format::Q6K => &[0..128, 128..192, 192..208, 208..210],
        // codes, d
        Format::Q8_0 => &[2..34, 0..2],
        // nibbles, exponent
        Format::Mxfp4 => &[1..17, 0..1],
        _ => &[],
    }
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
        Some(bytes) => bytes.next_multiple_of(ALIGN_BYTES),
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
            for (block, part) in row.chunks_exact(block_bytes).zip(out[at..].chunks_exact_mut(plane.len())) {
                part.copy_from_slice(&block[plane.clone()]);
            }
            at += plane.len() * blocks;
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
        for format in [Format::Q6K, Format::Q8_0, Format::Mxfp4, Format::Q4K, Format::F16] {
            let elems = 3 * 256;
            let (from, to) = (format.row_bytes(elems).unwrap(), row_bytes(format, elems));
            assert!(to >= from && to % ALIGN_BYTES == 0, "{format:?}");
            let rows: Vec<u8> = (0..2 * from).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut out = vec![0xa5; 2 * to];
            arrange(format, elems, 2, &rows, &mut out);
            for (row, out) in rows.chunks_exact(from).zip(out.chunks_exact(to)) {
                let mut at = 0;
                let parts = planes(format);
                if parts.is_empty() {
                    assert_eq!(row, &out[..from]);
                    continue;
                }
                for plane in parts {
                    for (i, block) in row.chunks_exact(format.block_bytes()).enumerate() {
                        assert_eq!(
                            block[plane.clone()],
                            out[at + i * plane.len()..][..plane.len()],
                            "{format:?} {i}"
                        );
                    }
                    at += plane.len() * (from / format.block_bytes());
                }
                assert_eq!(parts.iter().map(Range::len).sum::<usize>(), format.block_bytes());
                assert!(out[at..].iter().all(|b| *b == 0));
            }
        }
    }
}
