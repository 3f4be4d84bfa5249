//! Encoding: a row of f32 → a format's bytes, with the least error that a search finds.
//!
//! Input: a row, and how much each of its columns matters. Output: whole blocks. The error is Σ w·(y − x)², with w the
//! column's importance (the mean of the squares of what it is multiplied by: then it is the error of the product that is to be
//! expected) times a factor that grows with the element itself where levels are few (`weights`); scales are found by least
//! squares from many beginnings. The bytes depend on the row and the importance alone: plain f32 arithmetic in one order, on any machine.
//! Deliberately absent: formats whose values are rows of a grid (IQ1 to IQ3), which without calibration come out badly, and
//! those of one and two bits or of ternary weights, which are for models that were trained so.

mod levels;
mod minima;
mod scaled;

use thiserror::Error;

use super::*;
use levels::{E2M1, IQ4, Whole};
use minima::Range;

/// Why a row has no bytes in a format.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The format is only read.
    #[error("{format} is not written; written are {}", names())]
    NotWritten {
        /// The format.
        format: Format,
    },
    /// NaN or infinite.
    #[error("element {elem} is no finite number; `moe-run inspect --check` finds all such blocks")]
    NotFinite {
        /// The first such element of the row.
        elem: usize,
    },
    /// Beyond what the format's numbers reach.
    #[error("the block of element {elem} is beyond what {format} can hold; take BF16 or F32 for this tensor")]
    TooLarge {
        /// The format.
        format: Format,
        /// The first element of the block.
        elem: usize,
    },
}

/// The names of the formats that are written, comma-separated.
fn names() -> String {
    Format::WRITTEN.map(Format::name).join(", ")
}

/// The binary16 nearest to `x`, widened.
fn rounded_f16(x: f32) -> f32 {
    half::f16::from_f32(x).to_f32()
}

/// A block's elements and weights, a sub-block at a time.
fn sub_blocks<'a>(
    sub_elems: usize,
    x: &'a [f32],
    w: &'a [f32],
) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
    x.chunks(sub_elems).zip(w.chunks(sub_elems))
}

/// How much more the elements count that are large in their block: k in √(k·σ² + x²), with σ² the block's mean square; `None`:
/// all alike. Chosen by the divergence of the demo model's predictions (docs/quantize.md): without importance it makes up for
/// some of what is not known, and the fewer levels, the more a format gains by it.
fn emphasis(format: Format, has_importance: bool) -> Option<f32> {
    match (format, has_importance) {
        (Format::Q2K, false) => Some(1.0),
        (Format::Q2K, true) => Some(4.0),
        (Format::Q6K | Format::Q8_0, _) | (_, true) => None,
        (_, false) => Some(4.0),
    }
}

/// What the squared errors of a block's elements are multiplied by: the importance of their columns (1 without), times what
/// [`emphasis`] says.
fn weights(x: &[f32], importance: Option<&[f32]>, emphasis: Option<f32>, out: &mut [f32]) {
    // In units of the largest element, whose square need not be a number.
    let unit = levels::inverse(levels::farthest(x).abs());
    let mean_square = x.iter().map(|x| (x * unit) * (x * unit)).sum::<f32>() / x.len() as f32;
    for (i, w) in out.iter_mut().enumerate() {
        let own = x[i] * unit;
        let large = emphasis.map_or(1.0, |k| (k * mean_square + own * own).sqrt());
        *w = importance.map_or(1.0, |importance| importance[i]) * large;
    }
    // A block of zeros, or one whose columns never met anything: all alike.
    if out.iter().all(|w| *w == 0.0) {
        out.fill(1.0);
    }
}

/// Sums of squares of larger elements are no numbers, and a binary16 holds no scale of theirs.
const FAR_TOO_LARGE: f32 = 1e15;

/// Encodes blocks of `N` elements: `fill` finds the integers, `pack` puts them into bytes.
fn blocks<B: bytemuck::Pod, const N: usize>(
    format: Format,
    row: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    fill: impl Fn(&[f32], &[f32], &mut Integers),
    pack: impl Fn(&Integers) -> B,
) -> Result<(), EncodeError> {
    let mut w = [0.0; N];
    for (b, (x, bytes)) in row.chunks_exact(N).zip(out.chunks_exact_mut(size_of::<B>())).enumerate() {
        weights(
            x,
            importance.map(|importance| &importance[b * N..][..N]),
            emphasis(format, importance.is_some()),
            &mut w,
        );
        if format != Format::Mxfp4 && levels::farthest(x).abs() > FAR_TOO_LARGE {
            return Err(EncodeError::TooLarge { format, elem: b * N });
        }
        let mut integers = Integers::new(format.sub_elems());
        fill(x, &w, &mut integers);
        if !integers.scale.is_finite() || !integers.min.is_finite() {
            return Err(EncodeError::TooLarge { format, elem: b * N });
        }
        bytes.copy_from_slice(bytemuck::bytes_of(&pack(&integers)));
    }
    Ok(())
}

impl Format {
    /// The formats that [`Format::encode_row`] writes.
    pub const WRITTEN: [Format; 16] = [
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

    /// Encodes a row. `importance` has a number that is not negative for each element; without it all columns are alike.
    ///
    /// Lengths that do not agree are a mistake of the caller, and panic.
    ///
    /// # Errors
    /// [`EncodeError`]; `out` is then undefined.
    pub fn encode_row(
        self,
        row: &[f32],
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), EncodeError> {
        assert_eq!(self.row_bytes(row.len()), Some(out.len()), "{self}: {} elements", row.len());
        assert!(importance.is_none_or(|importance| importance.len() == row.len()));
        if let Some(elem) = row.iter().position(|x| !x.is_finite()) {
            return Err(EncodeError::NotFinite { elem });
        }
        let whole = |n: f32| Whole { low: -n, high: n - 1.0 };
        let line = |top: f32| Range { top, from_zero: true };
        let free_line = |top: f32| Range { top, from_zero: false };
        macro_rules! blocks {
            ($elems:literal, $fill:expr, $pack:path) => {
                blocks::<_, $elems>(self, row, importance, out, $fill, $pack)
            };
        }
        match self {
            Format::F32 => {
                for (x, out) in row.iter().zip(out.chunks_exact_mut(4)) {
                    out.copy_from_slice(&x.to_le_bytes());
                }
                Ok(())
            }
            Format::F16 => {
                for (elem, (x, out)) in row.iter().zip(out.chunks_exact_mut(2)).enumerate() {
                    if !rounded_f16(*x).is_finite() {
                        return Err(EncodeError::TooLarge { format: self, elem });
                    }
                    out.copy_from_slice(&f16_bytes(*x));
                }
                Ok(())
            }
            Format::Bf16 => {
                for (elem, (x, out)) in row.iter().zip(out.chunks_exact_mut(2)).enumerate() {
                    let rounded = half::bf16::from_f32(*x);
                    if !rounded.is_finite() {
                        return Err(EncodeError::TooLarge { format: self, elem });
                    }
                    out.copy_from_slice(&rounded.to_le_bytes());
                }
                Ok(())
            }
            Format::Q4_0 => blocks!(32, |x, w, out| scaled::one_scale(whole(8.0), x, w, out), q4_0::pack),
            Format::Q5_0 => blocks!(32, |x, w, out| scaled::one_scale(whole(16.0), x, w, out), q5_0::pack),
            Format::Q8_0 => blocks!(32, |x, w, out| scaled::one_scale(whole(128.0), x, w, out), q8_0::pack),
            Format::Iq4Nl => blocks!(32, |x, w, out| scaled::one_scale(IQ4, x, w, out), iq4_nl::pack),
            Format::Mxfp4 => blocks!(32, |x, w, out| scaled::power_of_two(E2M1, x, w, out), mxfp4::pack),
            Format::Q4_1 => blocks!(32, |x, w, out| minima::one_line(free_line(15.0), x, w, out), q4_1::pack),
            Format::Q5_1 => blocks!(32, |x, w, out| minima::one_line(free_line(31.0), x, w, out), q5_1::pack),
            Format::Q3K => {
                blocks!(256, |x, w, out| scaled::integer_scales(whole(4.0), (-32, 31), x, w, out), q3_k::pack)
            }
            Format::Q6K => {
                blocks!(
                    256,
                    |x, w, out| scaled::integer_scales(whole(32.0), (-128, 127), x, w, out),
                    q6_k::pack
                )
            }
            Format::Iq4Xs => {
                blocks!(256, |x, w, out| scaled::integer_scales(IQ4, (-32, 31), x, w, out), iq4_xs::pack)
            }
            Format::Q2K => {
                blocks!(256, |x, w, out| minima::integer_lines(line(3.0), 15, x, w, out), q2_k::pack)
            }
            Format::Q4K => {
                blocks!(256, |x, w, out| minima::integer_lines(line(15.0), 63, x, w, out), q4_k::pack)
            }
            Format::Q5K => {
                blocks!(256, |x, w, out| minima::integer_lines(line(31.0), 63, x, w, out), q5_k::pack)
            }
            Format::Iq2Xxs
            | Format::Iq2Xs
            | Format::Iq2S
            | Format::Iq3Xxs
            | Format::Iq3S
            | Format::Iq1S
            | Format::Iq1M
            | Format::Tq1_0
            | Format::Tq2_0
            | Format::Nvfp4
            | Format::Q1_0
            | Format::Q2_0 => Err(EncodeError::NotWritten { format: self }),
        }
    }

    /// Whether [`Format::encode_row`] writes it.
    #[must_use]
    pub fn is_written(self) -> bool {
        Format::WRITTEN.contains(&self)
    }
}

#[cfg(test)]
mod tests;
