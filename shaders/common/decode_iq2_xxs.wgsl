// IQ2_XXS, super-blocks of 256 in sub-blocks of 32: value = d / 8 · (2·s + 1) · ±grid.
// On the device: 16 words a block (for each sub-block four rows' numbers, then four times seven signs and the scale), then
// the row's d.
const $W_TABLE_WORDS: u32 = 128u;
const $W_BLOCK_WORDS: u32 = 16u;
#include side_f16
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 16u;
    let g = group & 15u;
    let rows = $W[block + (g & 14u)] >> (16u * (g & 1u));
    let signs = $W[block + (g | 1u)] >> (14u * (g & 1u));
    let values = $W_iq2_values($W_two_rows(rows & 0xffu, (rows >> 8u) & 0xffu));
    return $W_signed(values, $W_sign_words($W_even_signs(signs), $W_even_signs(signs >> 7u)));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 16u;
    let g = group & 15u;
    let s = $W[block + (g | 1u)] >> 28u;
    return vec2<f32>($W_block_scale($W_TABLE_WORDS + row, group >> 4u) * 0.125 * f32(2u * s + 1u), 0.0);
}
