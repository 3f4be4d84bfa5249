// IQ3_XXS, super-blocks of 256 in sub-blocks of 32: value = d / 4 · (2·s + 1) · ±grid.
// On the device: 24 words a block (16 of rows' numbers, then for each sub-block four times seven signs and the scale), then
// the row's d.
const $W_TABLE_WORDS: u32 = 128u;
const $W_BLOCK_WORDS: u32 = 24u;
#include side_f16
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 24u;
    let g = group & 15u;
    let rows = (vec4<u32>($W[block + g]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    let signs = $W[block + 16u + (g >> 1u)] >> (14u * (g & 1u));
    let digits = $W_four_rows_of_four(rows);
    // 8 · digit + 4, and 62 for the last.
    let last = digits & (digits >> vec4<u32>(1u)) & (digits >> vec4<u32>(2u)) & vec4<u32>(0x01010101u);
    let values = digits * 8u + vec4<u32>(0x04040404u) + last * 2u;
    return $W_signed(values, $W_sign_words($W_even_signs(signs), $W_even_signs(signs >> 7u)));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 24u;
    let g = group & 15u;
    let s = $W[block + 16u + (g >> 1u)] >> 28u;
    return vec2<f32>($W_block_scale($W_TABLE_WORDS + row, group >> 4u) * 0.25 * f32(2u * s + 1u), 0.0);
}
