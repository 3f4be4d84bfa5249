// Scale and minimum of sub-block j in 0..8, six bits each, from the 12 bytes that Q4_K and Q5_K share (three words at
// `at`): for j < 4 the low six bits of bytes j and j + 4; else nibbles of byte j + 4 under the high bits of j − 4 and j.
fn $W_scale_and_min(at: u32, j: u32) -> vec2<f32> {
    let shift = 8u * (j & 3u);
    let a = $W[at] >> shift;
    let b = $W[at + 1u] >> shift;
    let c = $W[at + 2u] >> shift;
    let first = vec2<u32>(a & 63u, b & 63u);
    let second = vec2<u32>((c & 15u) | ((a >> 2u) & 48u), ((c >> 4u) & 15u) | ((b >> 2u) & 48u));
    return vec2<f32>(select(second, first, j < 4u));
}
