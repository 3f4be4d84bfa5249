// Q3_K, super-blocks of 256 in groups of 16: value = d · (s − 32) · (q − 4), q's third bit from the mask.
// On the device: 27 words a block (32 bytes of third bits, 64 bytes of low bits, 12 bytes of six-bit scales), then d.
const $W_BLOCK_WORDS: u32 = 27u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let g = group & 15u;
    let block = row + (group >> 4u) * 27u;
    let low_at = block + 8u + (g >> 3u) * 8u + (g & 1u) * 4u;
    let high_at = block + (g & 1u) * 4u;
    let low = vec4<u32>($W[low_at], $W[low_at + 1u], $W[low_at + 2u], $W[low_at + 3u]);
    let high = vec4<u32>($W[high_at], $W[high_at + 1u], $W[high_at + 2u], $W[high_at + 3u]);
    let two = (low >> vec4<u32>(2u * ((g >> 1u) & 3u))) & vec4<u32>(0x03030303u);
    let third = (high >> vec4<u32>(g >> 1u)) & vec4<u32>(0x01010101u);
    return minus_each_byte(two | (third << vec4<u32>(2u)), 4u);
}

// Low four bits of scale g: byte g mod 8, low nibble for g < 8; its two high bits: byte 8 + g mod 4, bits 2 · (g / 4).
fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let g = group & 15u;
    let scales = row + (group >> 4u) * 27u + 24u;
    let low = ($W[scales + ((g >> 2u) & 1u)] >> (8u * (g & 3u) + 4u * (g >> 3u))) & 15u;
    let high = ($W[scales + 2u] >> (8u * (g & 3u) + 2u * (g >> 2u))) & 3u;
    let s = i32(low | (high << 4u)) - 32;
    return vec2<f32>($W_block_scale(row, group >> 4u) * f32(s), 0.0);
}
