// Q1_0, blocks of 128: value = d where the bit is set, else −d.
// On the device: four words of bits a block, then the row's d.
const $W_BLOCK_WORDS: u32 = 4u;
#include side_f16

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let bits = $W[row + (group >> 1u)] >> (16u * (group & 1u));
    let nibbles = (vec4<u32>(bits) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    return minus_each_byte(spread_bits(nibbles) * 2u, 1u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 3u), 0.0);
}
