// IQ1_S, super-blocks of 256 in sub-blocks of 32: value = d / 8 · (2·s + 1) · (8·grid ± 1).
// On the device: 12 words a block (eight of rows' numbers, then 16 bits a sub-block: three high bits of each row's number,
// three of the scale, and 1 where an eighth is taken off), then the row's d.
const $W_TABLE_WORDS: u32 = 1024u;
const $W_BLOCK_WORDS: u32 = 12u;
#include side_f16
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 12u;
    let g = group & 15u;
    let low = $W[block + (g >> 1u)] >> (16u * (g & 1u));
    let packed = $W[block + 8u + (g >> 2u)] >> (16u * ((g >> 1u) & 1u));
    let high = packed >> (6u * (g & 1u));
    let digits = $W_two_rows((low & 0xffu) | ((high & 7u) << 8u), ((low >> 8u) & 0xffu) | ((high & 56u) << 5u));
    let down = (packed >> 15u) & 1u;
    return $W_iq1_values(digits, down, down);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 12u;
    let g = group & 15u;
    let s = ($W[block + 8u + (g >> 2u)] >> (16u * ((g >> 1u) & 1u) + 12u)) & 7u;
    return vec2<f32>($W_block_scale($W_TABLE_WORDS + row, group >> 4u) * 0.125 * f32(2u * s + 1u), 0.0);
}
