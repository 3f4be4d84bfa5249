// Q4_1, blocks of 32: value = d · q + m, q in 0..16. Five words a block, as in the file: d and m, then the nibbles.

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 5u + 1u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]);
    return (words >> vec4<u32>(4u * (group & 1u))) & vec4<u32>(0x0f0f0f0fu);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let word = $W[row + (group >> 1u) * 5u];
    return vec2<f32>(f16_to_f32(word & 0xffffu), f16_to_f32(word >> 16u));
}
