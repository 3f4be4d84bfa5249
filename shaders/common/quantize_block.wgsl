// A block of 32 f32 as signed bytes (graph/quant defines it): scale = max|x| / 127, q = x · (127 / max|x|) rounded to nearest,
// ties to even. A block with a NaN or an infinity gets the scale NaN and q = 0; one so small that 127 / max|x| would
// overflow counts as zero.

struct Block {
    q: array<u32, 8>,
    // max|x| / 127, NaN where an element is not finite.
    scale_bits: u32,
}

// 127 / f32::MAX.
const SMALLEST_AMAX_BITS: u32 = 0x02fe0001u;

fn quantize_block(values: array<vec4<f32>, 8>) -> Block {
    var v = values;
    var block = Block();
    var largest = 0u;
    for (var i = 0u; i < 8u; i++) {
        // Without the sign, the order of the bits is the order of the numbers, infinity and NaN last.
        let bits = bitcast<vec4<u32>>(v[i]) & vec4<u32>(0x7fffffffu);
        largest = max(largest, max(max(bits.x, bits.y), max(bits.z, bits.w)));
    }
    if (largest >= 0x7f800000u) {
        block.scale_bits = QUIET_NAN_BITS;
        return block;
    }
    if (largest < SMALLEST_AMAX_BITS) {
        return block;
    }
    let amax = bitcast<f32>(largest);
    let inverse = divide(127.0, amax);
    for (var i = 0u; i < 8u; i++) {
        block.q[i] = pack_bytes(round(v[i] * inverse));
    }
    block.scale_bits = bitcast<u32>(divide(amax, 127.0));
    return block;
}

fn load_block(at: u32) -> array<vec4<f32>, 8> {
    var values: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        let x = at + i * 4u;
        values[i] = vec4<f32>(load(x), load(x + 1u), load(x + 2u), load(x + 3u));
    }
    return values;
}
