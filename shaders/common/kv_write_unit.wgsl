// Writes a unit of a state's row, rounded to the KV type: two elements for f16 and f32, two blocks for q8_0, whose scales
// share a word. F16 rounds to nearest, ties to even; Q8_0 has the bytes of an 8-bit activation block and its scale in
// binary16. `x` is where the row's values lie in the arena.

#if kv_q8_0
const $W_UNIT_ELEMS: u32 = 64u;

fn $W_write_block(x: u32, row: u32, block: u32) -> u32 {
    let quantized = quantize_block(load_block(x));
    for (var i = 0u; i < 8u; i++) {
        $W[row + block * 8u + i] = quantized.q[i];
    }
    return f32_to_f16(bitcast<f32>(quantized.scale_bits));
}

fn $W_write_unit(x: u32, slot: u32, width: u32, unit: u32) {
    let blocks = width / 32u;
    let row = slot * (width / 4u + (blocks + 1u) / 2u);
    var scales = $W_write_block(x + unit * 64u, row, unit * 2u);
    if (unit * 2u + 1u < blocks) {
        scales |= $W_write_block(x + unit * 64u + 32u, row, unit * 2u + 1u) << 16u;
    }
    $W[row + width / 4u + unit] = scales;
}
#else
const $W_UNIT_ELEMS: u32 = 2u;

fn $W_write_unit(x: u32, slot: u32, width: u32, unit: u32) {
    let a = arena[x + unit * 2u];
    let b = arena[x + unit * 2u + 1u];
#if kv_f16
    $W[slot * (width / 2u) + unit] = f32_to_f16(bitcast<f32>(a)) | (f32_to_f16(bitcast<f32>(b)) << 16u);
#else
    $W[slot * width + unit * 2u] = a;
    $W[slot * width + unit * 2u + 1u] = b;
#endif
}
#endif
