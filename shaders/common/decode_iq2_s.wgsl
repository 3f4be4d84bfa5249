// IQ2_S, super-blocks of 256 in sub-blocks of 16: value = d / 8 · (2·s + 1) · ±grid.
// On the device: 20 words a block (eight of rows' numbers, eight of signs, two of the numbers' high pairs, two of scales),
// then the row's d.
const $W_TABLE_WORDS: u32 = 512u;
const $W_BLOCK_WORDS: u32 = 20u;
#include side_f16
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 20u;
    let g = group & 15u;
    let low = $W[block + (g >> 1u)] >> (16u * (g & 1u));
    let high = $W[block + 16u + (g >> 3u)] >> (4u * (g & 7u));
    let signs = $W[block + 8u + (g >> 1u)] >> (16u * (g & 1u));
    let row_a = (low & 0xffu) | ((high & 3u) << 8u);
    let row_b = ((low >> 8u) & 0xffu) | ((high & 12u) << 6u);
    return $W_signed($W_iq2_values($W_two_rows(row_a, row_b)), $W_sign_words(signs, signs >> 8u));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 20u;
    let g = group & 15u;
    let s = ($W[block + 18u + (g >> 3u)] >> (4u * (g & 7u))) & 15u;
    return vec2<f32>($W_block_scale($W_TABLE_WORDS + row, group >> 4u) * 0.125 * f32(2u * s + 1u), 0.0);
}
