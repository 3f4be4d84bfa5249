// Q4_0, blocks of 32: q in 0..16, value = d · (q − 8). Byte j holds element j in its low nibble, j + 16 in its high one.
// On the device: four words of nibbles a block, then the row's scales.
const $W_BLOCK_WORDS: u32 = 4u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]);
    return minus_each_byte((words >> vec4<u32>(4u * (group & 1u))) & vec4<u32>(0x0f0f0f0fu), 8u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 1u), 0.0);
}
