//! BF16: the upper 16 bits of an IEEE binary32, little-endian.

/// Decodes 2 bytes per value; exact.
pub(super) fn decode_row(bytes: &[u8], out: &mut [f32]) {
    for (raw, y) in bytes.chunks_exact(2).zip(out) {
        *y = f32::from_bits(u32::from(u16::from_le_bytes([raw[0], raw[1]])) << 16);
    }
}
