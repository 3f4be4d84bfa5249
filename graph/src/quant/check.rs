//! Looking for damage: scales and values that are not finite.

use super::{Format, iq1_m, nvfp4};

/// What is not finite in some blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NonFinite {
    /// Blocks with a scale or minimum that is not finite (of plain floats: none, for they have no scales).
    pub scales: usize,
    /// Decoded values that are not finite.
    pub values: usize,
    /// The first element concerned, counted from the start of the bytes.
    pub first_elem: Option<usize>,
}

impl NonFinite {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.first_elem.is_none()
    }

    /// Adds what was found in blocks that begin `offset_elems` elements after this one's start.
    pub fn merge(&mut self, later: NonFinite, offset_elems: usize) {
        self.scales += later.scales;
        self.values += later.values;
        self.first_elem = self.first_elem.or(later.first_elem.map(|elem| elem + offset_elems));
    }
}

impl Format {
    /// Where the binary16 scales and minima lie in a block.
    #[must_use]
    pub const fn f16_scales(self) -> &'static [usize] {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::Mxfp4 | Format::Nvfp4 | Format::Iq1M => &[],
            Format::Q4_0
            | Format::Q5_0
            | Format::Q8_0
            | Format::Iq4Nl
            | Format::Iq4Xs
            | Format::Iq2Xxs
            | Format::Iq2Xs
            | Format::Iq2S
            | Format::Iq3Xxs
            | Format::Iq3S
            | Format::Iq1S
            | Format::Q1_0
            | Format::Q2_0 => &[0],
            Format::Tq1_0 => &[52],
            Format::Tq2_0 => &[64],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
        }
    }

    /// Whether a block needs decoding to know that its values are finite: a finite binary16 scale times small integers
    /// always is; MXFP4's scale reaches 2^127, and exponent 255 means NaN in the format's own definition, as one of NVFP4's
    /// scales does; IQ1_M's scale lies in pieces.
    fn is_suspect(self, block: &[u8]) -> bool {
        const LARGEST_SAFE_E8M0: u8 = 252; // 2^125 times 6
        const F16_EXPONENT: u8 = 0x7c;
        match self {
            Format::Mxfp4 => block[0] > LARGEST_SAFE_E8M0,
            Format::Nvfp4 => block[..4].contains(&nvfp4::NAN_SCALE),
            Format::Iq1M => iq1_m::scale(bytemuck::from_bytes(block))[1] & F16_EXPONENT == F16_EXPONENT,
            Format::Bf16 => u16::from_le_bytes([block[0], block[1]]) & 0x7f80 == 0x7f80,
            Format::F16 => block[1] & F16_EXPONENT == F16_EXPONENT,
            Format::F32 => !f32::from_le_bytes([block[0], block[1], block[2], block[3]]).is_finite(),
            _ => self.f16_scales().iter().any(|&at| block[at + 1] & F16_EXPONENT == F16_EXPONENT),
        }
    }

    /// Looks through whole blocks. Bytes beyond the last whole block are not looked at.
    pub fn non_finite(self, bytes: &[u8]) -> NonFinite {
        let mut found = NonFinite::default();
        let mut values = vec![0.0; self.block_elems()];
        for (i, block) in bytes.chunks_exact(self.block_bytes()).enumerate() {
            if !self.is_suspect(block) {
                continue;
            }
            self.decode_row(block, &mut values);
            let bad_values = values.iter().filter(|y| !y.is_finite()).count();
            let bad_scale = match self {
                Format::Mxfp4 => block[0] == u8::MAX,
                _ => self.is_quantized(),
            };
            if bad_values > 0 || bad_scale {
                let first = values.iter().position(|y| !y.is_finite()).unwrap_or(0);
                found.scales += usize::from(bad_scale);
                found.values += bad_values;
                found.first_elem.get_or_insert(i * self.block_elems() + first);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Random, fill};

    #[test]
    fn sound_blocks_are_clean_and_each_damage_is_found() {
        for format in Format::ALL {
            let (blocks, bytes) = (8, format.block_bytes());
            let mut row = vec![0; blocks * bytes];
            fill(format, 1.0, &mut Random::new(&[3]), &mut row);
            assert_eq!(format.non_finite(&row), NonFinite::default(), "{format}");
            // Every byte of block 5 set to 0xff, 0x7c and 0x7f in turn: found exactly where decoding says so.
            let mut hits = 0;
            for at in 0..bytes {
                for value in [0xff, 0x7c, 0x7f] {
                    let mut bad = row.clone();
                    bad[5 * bytes + at] = value;
                    let mut y = vec![0.0; blocks * format.block_elems()];
                    format.decode_row(&bad, &mut y);
                    let found = format.non_finite(&bad);
                    assert_eq!(
                        found.values,
                        y.iter().filter(|y| !y.is_finite()).count(),
                        "{format} byte {at}"
                    );
                    let nan_scale = format == Format::Mxfp4 && at == 0 && value == 0xff
                        || format == Format::Nvfp4 && at < 4 && value == nvfp4::NAN_SCALE;
                    if !nan_scale {
                        assert_eq!(
                            found.first_elem,
                            y.iter().position(|y| !y.is_finite()),
                            "{format} byte {at}"
                        );
                        assert_eq!(found.scales > 0, found.values > 0 && format.is_quantized());
                    }
                    hits += usize::from(!found.is_clean());
                }
            }
            // One byte makes no exponent of F32's, nor of the scale that IQ1_M keeps in pieces.
            let in_pieces = matches!(format, Format::F32 | Format::Iq1M);
            assert!(hits > 0 || in_pieces, "{format}: no damage was made");
        }
    }

    #[test]
    fn plain_floats_count_each_value() {
        let mut bytes: Vec<u8> =
            [1f32, f32::NAN, 2.0, f32::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes.extend([0xff; 3]); // no whole element
        let found = Format::F32.non_finite(&bytes);
        assert_eq!(found, NonFinite { scales: 0, values: 2, first_elem: Some(1) });
        let mut all = NonFinite::default();
        all.merge(NonFinite::default(), 0);
        all.merge(found, 100);
        all.merge(found, 200);
        assert_eq!(all, NonFinite { scales: 0, values: 4, first_elem: Some(101) });
    }

    #[test]
    fn a_scale_in_pieces_is_put_together() {
        let mut block = [0x55u8; 56];
        iq1_m::set_scale(bytemuck::from_bytes_mut(&mut block), 0x7c00u16.to_le_bytes());
        assert_eq!(
            Format::Iq1M.non_finite(&block),
            NonFinite { scales: 1, values: 256, first_elem: Some(0) }
        );
        iq1_m::set_scale(bytemuck::from_bytes_mut(&mut block), 0x7bffu16.to_le_bytes());
        assert!(Format::Iq1M.non_finite(&block).is_clean());
    }

    #[test]
    fn the_nan_exponent_of_mxfp4_is_damage() {
        let mut block = [0u8; 17];
        block[0] = 255;
        assert_eq!(Format::Mxfp4.non_finite(&block), NonFinite { scales: 1, values: 0, first_elem: Some(0) });
        block[0] = 252;
        block[1..].fill(0x77);
        assert!(Format::Mxfp4.non_finite(&block).is_clean());
        block[0] = 253;
        assert_eq!(Format::Mxfp4.non_finite(&block).values, 32);
    }
}
