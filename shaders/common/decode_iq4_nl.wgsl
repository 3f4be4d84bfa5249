// IQ4_NL, blocks of 32: value = d · table[q]; nibbles as in Q4_0. On the device: four words a block, then the scales.
const $W_BLOCK_WORDS: u32 = 4u;
#include side_f16
#include table_iq4

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]) >> vec4<u32>(4u * (group & 1u));
    return vec4<u32>(iq4_values(words.x), iq4_values(words.y), iq4_values(words.z), iq4_values(words.w));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 1u), 0.0);
}
