//! Stage 5, wgpu: how each format's rows lie on the device.
//!
//! Input: rows as the file holds them. Output: rows of whole 32-bit words that decode to exactly the same values. Blocks
//! whose length is no multiple of four bytes are taken apart into two planes a row, first all quants, then all scales
//! (or exponents): a pure permutation, without which lanes would read across words. Float rows are padded with zeros to
//! whole groups of 16 elements. The rows of formats that look values up in a grid come behind the grid. `shaders/common/decode_<format>.wgsl` reads what is made here.

use moe_run_graph::quant::{Format, grids};

/// Elements that a shader decodes at once.
pub const GROUP_ELEMS: usize = 16;

/// Where the two planes' bytes stand in a block of the file.
struct Planes {
    main_at: usize,
    main_bytes: usize,
    side_at: usize,
    side_bytes: usize,
}

fn planes(format: Format) -> Option<Planes> {
    let (main_at, main_bytes, side_at, side_bytes) = match format {
        Format::Q4_0 | Format::Iq4Nl => (2, 16, 0, 2),
        Format::Q5_0 => (2, 20, 0, 2),
        Format::Q8_0 => (2, 32, 0, 2),
        Format::Q3K => (0, 108, 108, 2),
        Format::Q6K => (0, 208, 208, 2),
        Format::Mxfp4 => (1, 16, 0, 1),
        Format::Iq2Xxs => (2, 64, 0, 2),
        Format::Iq2Xs => (2, 72, 0, 2),
        Format::Iq2S => (2, 80, 0, 2),
        Format::Iq3Xxs => (2, 96, 0, 2),
        Format::Iq3S => (2, 108, 0, 2),
        Format::Iq1S => (2, 48, 0, 2),
        Format::Tq1_0 => (0, 52, 52, 2),
        Format::Tq2_0 => (0, 64, 64, 2),
        Format::Q1_0 | Format::Q2_0 => (2, 16, 0, 2),
        Format::F32
        | Format::F16
        | Format::Bf16
        | Format::Q4_1
        | Format::Q5_1
        | Format::Q2K
        | Format::Q4K
        | Format::Q5K
        | Format::Iq4Xs
        | Format::Iq1M
        | Format::Nvfp4 => return None,
    };
    Some(Planes { main_at, main_bytes, side_at, side_bytes })
}

/// A tensor's rows on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    format: Format,
    cols: usize,
    /// Blocks of a row; the shaders find the second plane behind them.
    pub blocks: usize,
    /// Words from one row to the next.
    pub row_words: usize,
}

impl RowLayout {
    /// The layout of rows of `cols` elements, a multiple of the format's block.
    pub fn new(format: Format, cols: usize) -> RowLayout {
        let blocks = cols / format.block_elems();
        let row_words = match planes(format) {
            Some(p) => blocks * p.main_bytes / 4 + (blocks * p.side_bytes).div_ceil(4),
            None if format.is_quantized() => blocks * format.block_bytes() / 4,
            None => cols.next_multiple_of(GROUP_ELEMS) * format.block_bytes() / 4,
        };
        RowLayout { format, cols, blocks, row_words }
    }

    /// What a buffer of rows begins with: the digits of the format's grid, two rows of it to a word.
    pub fn table(&self) -> &'static [u8] {
        bytemuck::cast_slice(grids::digits_of(self.format))
    }

    /// Bytes of a buffer of so many rows.
    pub fn buffer_bytes(&self, rows: usize) -> u64 {
        (self.table().len() + rows * self.row_words * 4) as u64
    }

    /// Bytes of a row in the file.
    pub fn file_row_bytes(&self) -> usize {
        self.blocks * self.format.block_bytes()
    }

    /// Whether rows are uploaded as they are.
    pub fn is_native(&self) -> bool {
        planes(self.format).is_none() && self.file_row_bytes() == self.row_words * 4
    }

    /// Rewrites whole rows; `out` is as long as the rows are on the device.
    pub fn repack(&self, rows: &[u8], out: &mut [u8]) {
        let file_row_bytes = self.file_row_bytes();
        for (row, out) in rows.chunks_exact(file_row_bytes).zip(out.chunks_exact_mut(self.row_words * 4)) {
            let Some(p) = planes(self.format) else {
                out[..file_row_bytes].copy_from_slice(row);
                out[file_row_bytes..].fill(0);
                continue;
            };
            let (main, side) = out.split_at_mut(self.blocks * p.main_bytes);
            side.fill(0);
            let blocks = row.chunks_exact(self.format.block_bytes());
            let planes = main.chunks_exact_mut(p.main_bytes).zip(side.chunks_exact_mut(p.side_bytes));
            for (block, (main, side)) in blocks.zip(planes) {
                main.copy_from_slice(&block[p.main_at..p.main_at + p.main_bytes]);
                side.copy_from_slice(&block[p.side_at..p.side_at + p.side_bytes]);
            }
        }
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_row_is_kept_once() {
        for format in Format::ALL {
            let cols = 3 * format.block_elems().max(GROUP_ELEMS);
            let layout = RowLayout::new(format, cols);
            // Two bytes a position tell every byte of the two rows apart.
            let bytes = 2 * layout.file_row_bytes();
            for shift in [0, 8] {
                let rows: Vec<u8> = (0..bytes).map(|i| ((i + 1) >> shift) as u8).collect();
                let mut out = vec![0xee; 2 * layout.row_words * 4];
                layout.repack(&rows, &mut out);
                for (row, out) in rows.chunks(bytes / 2).zip(out.chunks(layout.row_words * 4)) {
                    let (mut before, mut after) = (row.to_vec(), out.to_vec());
                    before.resize(after.len(), 0);
                    before.sort_unstable();
                    after.sort_unstable();
                    assert_eq!(before, after, "{format}");
                }
                assert!(!layout.is_native() || rows == out, "{format}");
            }
        }
    }

    #[test]
    fn odd_float_rows_are_padded() {
        let layout = RowLayout::new(Format::F16, 3);
        assert_eq!((layout.row_words, layout.is_native()), (8, false));
        let mut out = vec![0xee; 32];
        layout.repack(&[1, 2, 3, 4, 5, 6], &mut out);
        assert_eq!(&out[..8], &[1, 2, 3, 4, 5, 6, 0, 0]);
        assert!(RowLayout::new(Format::F32, 32).is_native());
    }
}
