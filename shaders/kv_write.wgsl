// KvWrite: rows of k or v [T, width] → the state's rows at kv_slots [T], rounded to the KV type. One dispatch for the
// keys, one for the values. F16 rounds to nearest, ties to even; Q8_0 has the bytes of an 8-bit activation block and its
// scale in binary16. One lane a unit: two elements for f16 and f32, two blocks for q8_0, whose scales share a word.
// Grid (units / LANES, T).
#include numbers
#include arena
#include packed
#include quantize_block

struct Params {
    x: u32,
    width: u32,
    // [T], the place of each row in the state, which has `capacity` rows.
    slots: u32,
    capacity: u32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

#if kv_q8_0
// Writes the block's bytes and gives its scale in binary16.
fn write_block(x: u32, row: u32, block: u32) -> u32 {
    let measured = measure_block(x);
    for (var i = 0u; i < 8u; i++) {
        state[row + block * 8u + i] = quantize_word(x, i, measured);
    }
    return select(0x7e00u, f32_to_f16(measured.scale), measured.finite);
}
#endif

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let unit = wg.x * LANES + lane;
    if (wg.y >= now.tokens) {
        return;
    }
    let slot = arena[p.slots + wg.y];
    let x = p.x + wg.y * p.width;
    if (slot >= p.capacity) {
        return;
    }
#if kv_q8_0
    let blocks = p.width / 32u;
    let row = slot * (p.width / 4u + (blocks + 1u) / 2u);
    if (unit * 2u >= blocks) {
        return;
    }
    var scales = write_block(x + unit * 64u, row, unit * 2u);
    if (unit * 2u + 1u < blocks) {
        scales |= write_block(x + unit * 64u + 32u, row, unit * 2u + 1u) << 16u;
    }
    state[row + p.width / 4u + unit] = scales;
#else
    if (unit * 2u >= p.width) {
        return;
    }
    let a = arena[x + unit * 2u];
    let b = arena[x + unit * 2u + 1u];
#if kv_f16
    state[slot * (p.width / 2u) + unit] = f32_to_f16(bitcast<f32>(a)) | (f32_to_f16(bitcast<f32>(b)) << 16u);
#else
    state[slot * p.width + unit * 2u] = a;
    state[slot * p.width + unit * 2u + 1u] = b;
#endif
#endif
}
