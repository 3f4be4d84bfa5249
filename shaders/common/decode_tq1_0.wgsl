// TQ1_0, blocks of 256: value = d · (q − 1), q a digit in base three.
// On the device: 13 words a block (bytes of five digits: 32, then 16; four bytes of four), then the row's d.
const $W_BLOCK_WORDS: u32 = 13u;
#include side_f16

// Digit n of each byte, less 1; `power` is 3ⁿ. A byte is a fraction of 256, so that multiplying moves digits to its front.
fn $W_digit(bytes: vec4<u32>, power: vec4<u32>) -> vec4<u32> {
    let each = vec4<u32>(0x00ff00ffu);
    let even = ((((bytes & each) * power) & each) * 3u) >> vec4<u32>(8u);
    let odd = (((((bytes >> vec4<u32>(8u)) & each) * power) & each) * 3u) >> vec4<u32>(8u);
    return minus_each_byte((even & each) | ((odd & each) << vec4<u32>(8u)), 1u);
}

fn $W_power(n: u32) -> u32 {
    return select(select(1u, 3u, n == 1u), select(select(9u, 27u, n == 3u), 81u, n == 4u), n >= 2u);
}

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let block = row + (group >> 4u) * 13u;
    let g = group & 15u;
    if (g == 15u) {
        return $W_digit(vec4<u32>($W[block + 12u]), vec4<u32>(1u, 3u, 9u, 27u));
    }
    let at = block + select(8u, 4u * (g & 1u), g < 10u);
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]);
    return $W_digit(words, vec4<u32>($W_power(select(g - 10u, g >> 1u, g < 10u))));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    return vec2<f32>($W_block_scale(row, group >> 4u), 0.0);
}
