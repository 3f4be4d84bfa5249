// TQ2_0, blocks of 256: value = d · (q − 1), q two bits.
// On the device: 16 words a block (in each half of 128 elements, quarter j has bits 2·j of the half's 32 bytes), then the
// row's d.
const $W_BLOCK_WORDS: u32 = 16u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let g = group & 15u;
    let at = row + (group >> 4u) * 16u + (g >> 3u) * 8u + (g & 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]) >> vec4<u32>(2u * ((g >> 1u) & 3u));
    return minus_each_byte(words & vec4<u32>(0x03030303u), 1u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 4u), 0.0);
}
