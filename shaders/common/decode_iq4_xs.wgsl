// IQ4_XS, super-blocks of 256 in sub-blocks of 32: value = d · (s − 32) · table[q], s six bits.
// 34 words, as in the file: d and the scales' high pairs, their low nibbles, 128 bytes of nibbles as in Q4_0.
#include table_iq4

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 4u) * 34u + 2u + ((group & 15u) >> 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]) >> vec4<u32>(4u * (group & 1u));
    return vec4<u32>(iq4_values(words.x), iq4_values(words.y), iq4_values(words.z), iq4_values(words.w));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = row + (group >> 4u) * 34u;
    let j = (group & 15u) >> 1u;
    let word = $W[block];
    let low = ($W[block + 1u] >> (4u * j)) & 15u;
    let high = (word >> (16u + 2u * j)) & 3u;
    return vec2<f32>(f16_to_f32(word & 0xffffu) * f32(i32(low | (high << 4u)) - 32), 0.0);
}
