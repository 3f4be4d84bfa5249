// A block of 32 f32 in the arena as signed bytes (graph/quant defines it): scale = max|x| / 127, q = x · (127 / max|x|) rounded
// to nearest, ties to even. A block with a NaN or an infinity gets the scale NaN and q = 0; one so small that 127 / max|x|
// would overflow counts as zero.

struct BlockScale {
    scale: f32,
    inverse: f32,
    finite: bool,
}

// 127 / f32::MAX.
const SMALLEST_AMAX_BITS: u32 = 0x02fe0001u;

fn measure_block(x: u32) -> BlockScale {
    var largest = 0u;
    for (var i = 0u; i < 32u; i++) {
        // Without the sign, the order of the bits is the order of the numbers, infinity and NaN last.
        largest = max(largest, arena[x + i] & 0x7fffffffu);
    }
    let finite = largest < 0x7f800000u;
    if (!finite || largest < SMALLEST_AMAX_BITS) {
        return BlockScale(0.0, 0.0, finite);
    }
    let amax = bitcast<f32>(largest);
    return BlockScale(divide(amax, 127.0), divide(127.0, amax), true);
}

// Word `i` of the block's eight.
fn quantize_word(x: u32, i: u32, block: BlockScale) -> u32 {
    let at = x + i * 4u;
    let values = vec4<f32>(load(at), load(at + 1u), load(at + 2u), load(at + 3u)) * block.inverse;
    return select(0u, pack_bytes(round(values)), block.inverse > 0.0);
}
