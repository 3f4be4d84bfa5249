// One group of 16 activations of a row in the arena.

#if q8
struct Activations {
    q: vec4<u32>,
    scale: f32,
    // Σ q, which a format with an offset multiplies.
    sum: f32,
}
fn load_activations(row: u32, group: u32, cols: u32) -> Activations {
    let at = row + group * 4u;
    let q = vec4<u32>(arena[at], arena[at + 1u], arena[at + 2u], arena[at + 3u]);
    let scale = load(row + cols / 4u + (group >> 1u));
    return Activations(q, scale, f32(sum_bytes(q.x) + sum_bytes(q.y) + sum_bytes(q.z) + sum_bytes(q.w)));
}
fn activation_row_words(cols: u32) -> u32 {
    return cols / 4u + cols / 32u;
}
#else
struct Activations {
    values: mat4x4<f32>,
}
fn load_activation(row: u32, at: u32, cols: u32) -> f32 {
    if (at >= cols) {
        return 0.0;
    }
    let value = load(row + at);
#if round_f16
    return f16_to_f32(f32_to_f16(value));
#else
    return value;
#endif
}
fn load_four(row: u32, at: u32, cols: u32) -> vec4<f32> {
    return vec4<f32>(load_activation(row, at, cols), load_activation(row, at + 1u, cols),
        load_activation(row, at + 2u, cols), load_activation(row, at + 3u, cols));
}
fn load_activations(row: u32, group: u32, cols: u32) -> Activations {
    let at = group * 16u;
    return Activations(mat4x4<f32>(load_four(row, at, cols), load_four(row, at + 4u, cols),
        load_four(row, at + 8u, cols), load_four(row, at + 12u, cols)));
}
fn activation_row_words(cols: u32) -> u32 {
    return cols;
}
#endif
