// Q2_K, super-blocks of 256 in groups of 16: value = d · (s & 15) · q − dmin · (s >> 4), q in 0..4.
// 21 words, as in the file: 16 bytes s, 64 bytes of q, then d and dmin. Each half of 128 elements has 32 bytes of q;
// group g of a half reads bits 2·(g / 2) of its first or second 16 bytes.

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let g = group & 15u;
    let at = row + (group >> 4u) * 21u + 4u + (g >> 3u) * 8u + (g & 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]);
    return (words >> vec4<u32>(2u * ((g >> 1u) & 3u))) & vec4<u32>(0x03030303u);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let g = group & 15u;
    let block = row + (group >> 4u) * 21u;
    let s = ($W[block + (g >> 2u)] >> (8u * (g & 3u))) & 0xffu;
    let d = $W[block + 20u];
    return vec2<f32>(f16_to_f32(d & 0xffffu) * f32(s & 15u), -(f16_to_f32(d >> 16u) * f32(s >> 4u)));
}
