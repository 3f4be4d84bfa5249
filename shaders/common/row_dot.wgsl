// The dot product of one row of `$W` with a row of activations, the lanes of a workgroup taking groups of 16 in turn.
// With q8 the activations are 8-bit blocks of 32 in the arena: `cols / 4` words of integers, then `cols / 32` scales;
// the integer sums are exact, so only the order of the groups rounds.

fn $W_dot(row: u32, group: u32, x: Activations) -> f32 {
#if q8
    let q = $W_quants(row, group);
    let s = $W_scale(row, group);
    let product = dot_bytes(q.x, x.q.x) + dot_bytes(q.y, x.q.y) + dot_bytes(q.z, x.q.z) + dot_bytes(q.w, x.q.w);
    return x.scale * (s.x * f32(product) + s.y * x.sum);
#else
    let w = $W_values(row, group);
    return dot(w[0], x.values[0]) + dot(w[1], x.values[1]) + dot(w[2], x.values[2]) + dot(w[3], x.values[3]);
#endif
}
