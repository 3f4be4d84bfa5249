// BF16: rows of bfloat16, two to a word, padded with zeros to whole groups of 16.

fn $W_four(at: u32) -> vec4<f32> {
    let a = $W[at];
    let b = $W[at + 1u];
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}

fn $W_values(row: u32, group: u32) -> mat4x4<f32> {
    let at = row + group * 8u;
    return mat4x4<f32>($W_four(at), $W_four(at + 2u), $W_four(at + 4u), $W_four(at + 6u));
}
