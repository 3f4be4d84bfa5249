// The dot product of sixteen elements of a row of `$W`, whose numbers are floats, with activations that are not rounded.
fn $W_plain_dot(row: u32, group: u32, x: mat4x4<f32>) -> f32 {
    let w = $W_values(row, group);
    return dot(w[0], x[0]) + dot(w[1], x[1]) + dot(w[2], x[2]) + dot(w[3], x[3]);
}
