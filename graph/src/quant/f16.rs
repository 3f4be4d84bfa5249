//! F16: IEEE binary16, little-endian.

use super::f16_at;

/// Decodes 2 bytes per value; exact, for every binary16 is a binary32.
pub(super) fn decode_row(bytes: &[u8], out: &mut [f32]) {
    for (raw, y) in bytes.chunks_exact(2).zip(out) {
        *y = f16_at([raw[0], raw[1]]);
    }
}
