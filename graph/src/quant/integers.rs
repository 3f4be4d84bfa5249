//! A quantized block as integers under scales: what every quantized format is, and how all of them decode.

/// One block, or as much of it as lies under one floating-point scale ([`Format::scale_elems`](super::Format::scale_elems)): y_k = (scale · sub_scale_s) · q_k − (min · sub_min_s), with s = k / `sub_elems`.
///
/// Formats of 16 or 32 elements have one sub-block with sub_scale 1 (and sub_min 1); formats without minima have min 0.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Integers {
    /// d, the scale of the scales.
    pub scale: f32,
    /// dmin, the scale of the minima; 0 where the format has none.
    pub min: f32,
    /// Elements under one sub-scale: 16 or 32.
    pub sub_elems: usize,
    /// A scale for each sub-block.
    pub sub_scales: [i16; 16],
    /// A minimum for each sub-block.
    pub sub_mins: [i16; 16],
    /// The elements, zero point taken off; those beyond the block's are not meant.
    pub q: [i16; 256],
}

impl Integers {
    /// A block without content whose sub-blocks have `sub_elems` elements.
    pub fn new(sub_elems: usize) -> Integers {
        Integers { scale: 0.0, min: 0.0, sub_elems, sub_scales: [1; 16], sub_mins: [1; 16], q: [0; 256] }
    }

    /// The values of as many elements as `out` has: both products, then the difference, each rounded once.
    pub fn values(&self, out: &mut [f32]) {
        let subs = self.q.chunks_exact(self.sub_elems).zip(out.chunks_mut(self.sub_elems));
        for ((q, out), (sub_scale, sub_min)) in subs.zip(self.sub_scales.iter().zip(&self.sub_mins)) {
            let (scale, min) = (self.scale * f32::from(*sub_scale), self.min * f32::from(*sub_min));
            for (y, q) in out.iter_mut().zip(q) {
                *y = scale * f32::from(*q) - min;
            }
        }
    }
}
