// Q8_0, blocks of 32: value = d · q, q signed 8-bit. On the device: eight words a block, then the row's scales.
const $W_BLOCK_WORDS: u32 = 8u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + group * 4u;
    return vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 1u), 0.0);
}
