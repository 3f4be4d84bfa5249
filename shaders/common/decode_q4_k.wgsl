// Q4_K, super-blocks of 256 in sub-blocks of 32: value = d · s · q − dmin · m, q in 0..16.
// 36 words, as in the file: d and dmin, 12 bytes of scales, 128 bytes of nibbles; 32 bytes hold 64 elements, the first
// 32 in the low nibbles.
#include scales_k

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let g = group & 15u;
    let at = row + (group >> 4u) * 36u + 4u + (g >> 2u) * 8u + (g & 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]);
    return (words >> vec4<u32>(2u * (g & 2u))) & vec4<u32>(0x0f0f0f0fu);
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = row + (group >> 4u) * 36u;
    let s = $W_scale_and_min(block + 1u, (group & 15u) >> 1u);
    let d = $W[block];
    return vec2<f32>(f16_to_f32(d & 0xffffu) * s.x, -(f16_to_f32(d >> 16u) * s.y));
}
