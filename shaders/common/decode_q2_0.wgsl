// Q2_0, blocks of 64: value = d · (q − 1), q two bits, in order.
// On the device: four words a block, then the row's d.
const $W_BLOCK_WORDS: u32 = 4u;
#include side_f16
#include digits

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let word = $W[row + group];
    let pairs = vec4<u32>(spread_pairs(word & 0xffu), spread_pairs((word >> 8u) & 0xffu),
        spread_pairs((word >> 16u) & 0xffu), spread_pairs(word >> 24u));
    return minus_each_byte(pairs, 1u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 2u), 0.0);
}
