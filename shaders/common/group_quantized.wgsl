// The f32 values of one group of 16 elements of a row of `$W`: scale · q + offset.
fn $W_values(row: u32, group: u32) -> mat4x4<f32> {
    let q = $W_quants(row, group);
    let s = $W_scale(row, group);
    let offset = vec4<f32>(s.y);
    return mat4x4<f32>(s.x * bytes_to_f32(q.x) + offset, s.x * bytes_to_f32(q.y) + offset,
        s.x * bytes_to_f32(q.z) + offset, s.x * bytes_to_f32(q.w) + offset);
}
