// IQ3_S, super-blocks of 256 in sub-blocks of 32: value = d · (2·s + 1) · ±grid.
// On the device: 27 words a block (16 of rows' numbers, two of their ninth bits, eight of signs, one of scales), then the
// row's d.
const $W_TABLE_WORDS: u32 = 256u;
const $W_BLOCK_WORDS: u32 = 27u;
#include side_f16
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 27u;
    let g = group & 15u;
    let low = (vec4<u32>($W[block + g]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    let ninth = $W[block + 16u + (g >> 3u)] >> (4u * (g & 7u));
    let rows = low | (((vec4<u32>(ninth) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) << vec4<u32>(8u));
    let signs = $W[block + 18u + (g >> 1u)] >> (16u * (g & 1u));
    let values = $W_four_rows_of_four(rows) * 2u + vec4<u32>(0x01010101u);
    return $W_signed(values, $W_sign_words(signs, signs >> 8u));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 27u;
    let g = group & 15u;
    let s = ($W[block + 26u] >> (4u * (g >> 1u))) & 15u;
    return vec2<f32>($W_block_scale($W_TABLE_WORDS + row, group >> 4u) * f32(2u * s + 1u), 0.0);
}
