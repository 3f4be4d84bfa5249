// Sixteen elements of the row as it is; 0 behind its end.
fn plain_value(at: u32, cols: u32) -> f32 {
    if (at >= cols) {
        return 0.0;
    }
    return input_value(at);
}

fn plain_values(group: u32, cols: u32) -> mat4x4<f32> {
    var values: mat4x4<f32>;
    for (var i = 0u; i < 4u; i++) {
        let at = group * 16u + i * 4u;
        values[i] = vec4<f32>(plain_value(at, cols), plain_value(at + 1u, cols), plain_value(at + 2u, cols),
            plain_value(at + 3u, cols));
    }
    return values;
}
