// F32: rows of f32, padded with zeros to whole groups of 16.

fn $W_values(row: u32, group: u32) -> mat4x4<f32> {
    let at = row + group * 16u;
    return mat4x4<f32>(
        bitcast<vec4<f32>>(vec4<u32>($W[at], $W[at + 1u], $W[at + 2u], $W[at + 3u])),
        bitcast<vec4<f32>>(vec4<u32>($W[at + 4u], $W[at + 5u], $W[at + 6u], $W[at + 7u])),
        bitcast<vec4<f32>>(vec4<u32>($W[at + 8u], $W[at + 9u], $W[at + 10u], $W[at + 11u])),
        bitcast<vec4<f32>>(vec4<u32>($W[at + 12u], $W[at + 13u], $W[at + 14u], $W[at + 15u])));
}
