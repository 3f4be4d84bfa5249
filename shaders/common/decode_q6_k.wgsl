// Q6_K, super-blocks of 256 in groups of 16: value = d · s · (q − 32), s signed 8-bit.
// On the device: 52 words a block (128 bytes of low nibbles, 64 bytes of high pairs, 16 scales), then the row's d.
// In each half of 128 elements, quarter j (32 elements) has its nibbles in 32 bytes number j mod 2, low for j < 2, and
// its pairs in bits 2·j of the half's 32 bytes.
const $W_BLOCK_WORDS: u32 = 52u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let g = group & 15u;
    let j = (g >> 1u) & 3u;
    let block = row + (group >> 4u) * 52u;
    let low_at = block + (g >> 3u) * 16u + (j & 1u) * 8u + (g & 1u) * 4u;
    let high_at = block + 32u + (g >> 3u) * 8u + (g & 1u) * 4u;
    let low = vec4<u32>($W[low_at], $W[low_at + 1u], $W[low_at + 2u], $W[low_at + 3u]);
    let high = vec4<u32>($W[high_at], $W[high_at + 1u], $W[high_at + 2u], $W[high_at + 3u]);
    let nibbles = (low >> vec4<u32>(4u * (j >> 1u))) & vec4<u32>(0x0f0f0f0fu);
    let pairs = (high >> vec4<u32>(2u * j)) & vec4<u32>(0x03030303u);
    return minus_each_byte(nibbles | (pairs << vec4<u32>(4u)), 32u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let g = group & 15u;
    let word = $W[row + (group >> 4u) * 52u + 48u + (g >> 2u)];
    let s = i32(word << (24u - 8u * (g & 3u))) >> 24u;
    return vec2<f32>($W_block_scale(row, group >> 4u) * f32(s), 0.0);
}
