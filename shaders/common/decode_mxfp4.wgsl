// MXFP4, blocks of 32: value = 2^(e − 128) · table[q], the table being E2M1 doubled; nibbles as in Q4_0.
// On the device: four words a block, then the row's exponents, four to a word.
#include table_mxfp4

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]) >> vec4<u32>(4u * (group & 1u));
    return vec4<u32>(mxfp4_values(words.x), mxfp4_values(words.y), mxfp4_values(words.z),
        mxfp4_values(words.w));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = group >> 1u;
    let e = ($W[row + p.$W_blocks * 4u + (block >> 2u)] >> (8u * (block & 3u))) & 0xffu;
    let bits = select((e - 1u) << 23u, 0x00200000u << e, e < 2u);
    return vec2<f32>(bitcast<f32>(bits), 0.0);
}
