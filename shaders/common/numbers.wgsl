// Number formats by their bits, so that no driver's flushing of small numbers or assumption of "no NaN" can change a
// value: WGSL lets an implementation flush subnormals in unpack2x16float and assume that NaN and infinity do not occur.

const QUIET_NAN_BITS: u32 = 0x7fc00000u;

// IEEE binary16 in the low 16 bits → f32, exactly, subnormals, infinities and NaN included.
fn f16_to_f32(half_bits: u32) -> f32 {
    let sign = (half_bits & 0x8000u) << 16u;
    let magnitude = half_bits & 0x7fffu;
    var bits = (magnitude << 13u) + 0x38000000u;
    bits = select(bits, bitcast<u32>(f32(magnitude) * 0x1p-24f), magnitude < 0x400u);
    bits = select(bits, (magnitude << 13u) | 0x7f800000u, magnitude >= 0x7c00u);
    return bitcast<f32>(bits | sign);
}

// The two binary16 numbers of a word, the low half first.
fn f16_pair(word: u32) -> vec2<f32> {
    return vec2<f32>(f16_to_f32(word & 0xffffu), f16_to_f32(word >> 16u));
}

// f32 → binary16 in the low 16 bits, to nearest, ties to even; NaN stays NaN, too large becomes infinite.
fn f32_to_f16(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    // Normal results: round away the 13 low bits of the fraction; a carry runs into the exponent, as it should.
    var half_bits = (magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u;
    if (magnitude < 0x38800000u) {
        // Subnormal results are multiples of 2^-24: shift the fraction into place and round what falls out.
        let shift = min(126u - min(magnitude >> 23u, 126u), 31u);
        let fraction = (magnitude & 0x7fffffu) | 0x800000u;
        let kept = fraction >> shift;
        let rest = fraction & ((1u << shift) - 1u);
        let tie = 1u << (shift - 1u);
        half_bits = select(kept, kept + 1u, rest > tie || (rest == tie && (kept & 1u) == 1u));
        half_bits = select(half_bits, 0u, magnitude < 0x33000000u);
    }
    half_bits = select(half_bits, 0x7c00u, magnitude >= 0x477ff000u);
    half_bits = select(half_bits, 0x7e00u, magnitude > 0x7f800000u);
    return half_bits | sign;
}

// bfloat16 in the low 16 bits → f32, exactly.
fn bf16_to_f32(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}

fn is_nan(bits: u32) -> bool {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

fn is_finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// a / b to nearest, ties to even, for positive normal numbers: WGSL allows a division to be 2.5 units in the last place off
// and need not fuse the multiplication and addition that would mend it. Long division, 8 bits of the quotient at a time.
fn divide(a: f32, b: f32) -> f32 {
    let a_bits = bitcast<u32>(a);
    let b_bits = bitcast<u32>(b);
    var rest = (a_bits & 0x7fffffu) | 0x800000u;
    let divisor = (b_bits & 0x7fffffu) | 0x800000u;
    var exponent = i32(a_bits >> 23u) - i32(b_bits >> 23u) + 127;
    if (rest < divisor) {
        rest <<= 1u;
        exponent -= 1;
    }
    if (exponent < 1 || exponent > 254) {
        return a / b;
    }
    rest -= divisor;
    var quotient = 1u;
    for (var i = 0u; i < 3u; i++) {
        rest <<= 8u;
        quotient = (quotient << 8u) | (rest / divisor);
        rest %= divisor;
    }
    // 24 bits, one more to round by, and whether anything is left behind it.
    var fraction = quotient >> 1u;
    fraction += select(0u, 1u, (quotient & 1u) == 1u && (rest != 0u || (fraction & 1u) == 1u));
    return bitcast<f32>((u32(exponent) << 23u) + fraction - 0x800000u);
}
