// Four signed 8-bit integers in a word, the lowest byte first.

// Σ a_i · b_i, exact.
fn dot_bytes(a: u32, b: u32) -> i32 {
#if dot4
    return dot4I8Packed(a, b);
#else
    return ((i32(a << 24u) >> 24u) * (i32(b << 24u) >> 24u)) + ((i32(a << 16u) >> 24u) * (i32(b << 16u) >> 24u))
        + ((i32(a << 8u) >> 24u) * (i32(b << 8u) >> 24u)) + ((i32(a) >> 24u) * (i32(b) >> 24u));
#endif
}

// Σ a_i, exact.
fn sum_bytes(a: u32) -> i32 {
    return dot_bytes(a, 0x01010101u);
}

fn bytes_to_f32(word: u32) -> vec4<f32> {
    return vec4<f32>(f32(i32(word << 24u) >> 24u), f32(i32(word << 16u) >> 24u), f32(i32(word << 8u) >> 24u),
        f32(i32(word) >> 24u));
}

// Each byte minus `n`, for bytes below 128 and n ≤ 128; no borrow crosses a byte.
fn minus_each_byte(bytes: vec4<u32>, n: u32) -> vec4<u32> {
    return ((bytes | vec4<u32>(0x80808080u)) - vec4<u32>(n * 0x01010101u)) ^ vec4<u32>(0x80808080u);
}

// Bits 0..3 of `nibble`, one in the lowest bit of each byte.
fn spread_bits(nibble: vec4<u32>) -> vec4<u32> {
    return (nibble * 0x00204081u) & vec4<u32>(0x01010101u);
}

fn pack_bytes(values: vec4<f32>) -> u32 {
    let v = vec4<u32>(vec4<i32>(values)) & vec4<u32>(0xffu);
    return v.x | (v.y << 8u) | (v.z << 16u) | (v.w << 24u);
}
