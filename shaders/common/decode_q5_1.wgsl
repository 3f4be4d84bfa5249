// Q5_1, blocks of 32: value = d · q + m, q in 0..32. Six words a block, as in the file: d and m, fifth bits, nibbles.

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 6u;
    let words = vec4<u32>($W[at + 2u], $W[at + 3u], $W[at + 4u], $W[at + 5u]);
    let nibbles = (words >> vec4<u32>(4u * (group & 1u))) & vec4<u32>(0x0f0f0f0fu);
    let fifth = $W[at + 1u] >> (16u * (group & 1u));
    let bits = spread_bits((vec4<u32>(fifth) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u));
    return nibbles | (bits << vec4<u32>(4u));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let word = $W[row + (group >> 1u) * 6u];
    return vec2<f32>(f16_to_f32(word & 0xffffu), f16_to_f32(word >> 16u));
}
