// F16: rows of binary16, two to a word, padded with zeros to whole groups of 16.

fn $W_four(at: u32) -> vec4<f32> {
    let a = $W[at];
    let b = $W[at + 1u];
    return vec4<f32>(f16_to_f32(a & 0xffffu), f16_to_f32(a >> 16u), f16_to_f32(b & 0xffffu), f16_to_f32(b >> 16u));
}

fn $W_values(row: u32, group: u32) -> mat4x4<f32> {
    let at = row + group * 8u;
    return mat4x4<f32>($W_four(at), $W_four(at + 2u), $W_four(at + 4u), $W_four(at + 6u));
}
