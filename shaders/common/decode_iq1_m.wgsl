// IQ1_M, super-blocks of 256 in sub-blocks of 16: value = d / 8 · (2·s + 1) · (8·grid ± 1).
// 14 words, as in the file: eight of rows' numbers, four of a nibble a row (three high bits of the number, and 1 where an
// eighth is taken off), two of four times 12 bits of scales and 4 of d.
const $W_TABLE_WORDS: u32 = 1024u;
#include grid

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 14u;
    let g = group & 15u;
    let low = $W[block + (g >> 1u)] >> (16u * (g & 1u));
    let high = $W[block + 8u + (g >> 2u)] >> (8u * (g & 3u));
    let digits = $W_two_rows((low & 0xffu) | ((high & 7u) << 8u), ((low >> 8u) & 0xffu) | ((high & 112u) << 4u));
    return $W_iq1_values(digits, (high >> 3u) & 1u, (high >> 7u) & 1u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = $W_TABLE_WORDS + row + (group >> 4u) * 14u;
    let g = group & 15u;
    let low_scales = $W[block + 12u];
    let high_scales = $W[block + 13u];
    let d = ((low_scales >> 12u) & 0xfu) | ((low_scales >> 24u) & 0xf0u) | ((high_scales >> 4u) & 0xf00u) | ((high_scales >> 16u) & 0xf000u);
    let packed = select(low_scales, high_scales, g >= 8u) >> (16u * ((g >> 2u) & 1u));
    let s = (packed >> (3u * (g & 3u))) & 7u;
    return vec2<f32>(f16_to_f32(d) * 0.125 * f32(2u * s + 1u), 0.0);
}
