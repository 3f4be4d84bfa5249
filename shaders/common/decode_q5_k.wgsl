// Q5_K, super-blocks of 256 in sub-blocks of 32: value = d · s · q − dmin · m, q in 0..32.
// 44 words, as in the file: d and dmin, 12 bytes of scales, 32 bytes whose bit j is the fifth bit in sub-block j,
// 128 bytes of nibbles as in Q4_K.
#include scales_k

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let g = group & 15u;
    let block = row + (group >> 4u) * 44u;
    let low_at = block + 12u + (g >> 2u) * 8u + (g & 1u) * 4u;
    let high_at = block + 4u + (g & 1u) * 4u;
    let low = vec4<u32>($W[low_at], $W[low_at + 1u], $W[low_at + 2u], $W[low_at + 3u]);
    let high = vec4<u32>($W[high_at], $W[high_at + 1u], $W[high_at + 2u], $W[high_at + 3u]);
    let nibbles = (low >> vec4<u32>(2u * (g & 2u))) & vec4<u32>(0x0f0f0f0fu);
    let fifth = (high >> vec4<u32>(g >> 1u)) & vec4<u32>(0x01010101u);
    return nibbles | (fifth << vec4<u32>(4u));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = row + (group >> 4u) * 44u;
    let s = $W_scale_and_min(block + 1u, (group & 15u) >> 1u);
    let d = $W[block];
    return vec2<f32>(f16_to_f32(d & 0xffffu) * s.x, -(f16_to_f32(d >> 16u) * s.y));
}
