// MXFP4, blocks of 32: value = 2^(e − 128) · table[q], the table being E2M1 doubled; nibbles as in Q4_0.
// On the device: four words a block, then the row's exponents, four to a word.

fn $W_mxfp4_value(n: u32) -> u32 {
    let low = select(0x03020100u, 0x0c080604u, (n & 4u) != 0u);
    let high = select(0xfdfeff00u, 0xf4f8fafcu, (n & 4u) != 0u);
    return (select(low, high, (n & 8u) != 0u) >> (8u * (n & 3u))) & 0xffu;
}

fn $W_mxfp4_values(nibbles: u32) -> u32 {
    return $W_mxfp4_value(nibbles & 15u) | ($W_mxfp4_value((nibbles >> 8u) & 15u) << 8u)
        | ($W_mxfp4_value((nibbles >> 16u) & 15u) << 16u) | ($W_mxfp4_value((nibbles >> 24u) & 15u) << 24u);
}

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 1u) * 4u;
    let words = vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u]) >> vec4<u32>(4u * (group & 1u));
    return vec4<u32>($W_mxfp4_values(words.x), $W_mxfp4_values(words.y), $W_mxfp4_values(words.z),
        $W_mxfp4_values(words.w));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let block = group >> 1u;
    let e = ($W[row + p.$W_blocks * 4u + (block >> 2u)] >> (8u * (block & 3u))) & 0xffu;
    let bits = select((e - 1u) << 23u, 0x00200000u << e, e < 2u);
    return vec2<f32>(bitcast<f32>(bits), 0.0);
}
