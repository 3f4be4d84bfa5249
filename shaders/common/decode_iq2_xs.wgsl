// IQ2_XS, super-blocks of 256 in sub-blocks of 16: value = d / 8 · (2·s + 1) · ±grid.
// On the device: 18 words a block (for each sub-block two rows' numbers in 9 bits, each with seven signs above; nibbles of
// scales), then the row's d.
const $W_TABLE_WORDS: u32 = 256u;
const $W_BLOCK_WORDS: u32 = 18u;
#include side_f16
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 18u;
    let g = group & 15u;
    let packed = $W[block + g];
    let values = $W_iq2_values($W_two_rows(packed & 511u, (packed >> 16u) & 511u));
    return $W_signed(values, $W_sign_words($W_even_signs(packed >> 9u), $W_even_signs(packed >> 25u)));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 18u;
    let g = group & 15u;
    let s = ($W[block + 16u + (g >> 3u)] >> (4u * (g & 7u))) & 15u;
    return vec2<f32>($W_block_scale($W_TABLE_WORDS + row, group >> 4u) * 0.125 * f32(2u * s + 1u), 0.0);
}
