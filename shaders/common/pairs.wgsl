// RoPE's pairs of a head.

// Both elements of a head's pair `i`: where they stand, and whether they are turned.
fn pair_places(i: u32) -> vec3<u32> {
    if (i >= p.pairs) {
        return vec3<u32>(2u * i, 2u * i + 1u, 0u);
    }
    if (p.interleaved == 1u) {
        return vec3<u32>(2u * i, 2u * i + 1u, 1u);
    }
    return vec3<u32>(i, i + p.pairs, 1u);
}

// Turned by the angle whose cos and sin are in the arena.
fn turn(pair: vec2<f32>, angle: u32) -> vec2<f32> {
    let c = load(angle);
    let s = load(angle + 1u);
    return vec2<f32>(pair.x * c - pair.y * s, pair.y * c + pair.x * s);
}
