//! F32: IEEE binary32, little-endian.

/// Decodes 4 bytes per value.
pub(super) fn decode_row(bytes: &[u8], out: &mut [f32]) {
    for (raw, y) in bytes.chunks_exact(4).zip(out) {
        *y = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
    }
}
