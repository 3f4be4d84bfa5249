// Q5_0, blocks of 32: value = d · (q − 16), q's fifth bit is bit j of the block's first word.
// On the device: the word of fifth bits and four of nibbles a block, then the row's scales.
const $W_BLOCK_WORDS: u32 = 5u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 5u;
    let words = vec4<u32>($W[at + 1u], $W[at + 2u], $W[at + 3u], $W[at + 4u]);
    let nibbles = (words >> vec4<u32>(4u * (group & 1u))) & vec4<u32>(0x0f0f0f0fu);
    let fifth = $W[at] >> (16u * (group & 1u));
    let bits = spread_bits((vec4<u32>(fifth) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
    return minus_each_byte(nibbles | (bits << vec4<u32>(4u)), 16u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 1u), 0.0);
}
