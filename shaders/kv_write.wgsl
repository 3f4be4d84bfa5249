// KvWrite: rows of k or v [T, width] → the state's rows at kv_slots [T], rounded to the KV type. One dispatch for the
// keys, one for the values. One lane a unit of the row; grid (units / LANES, T).
#include numbers
#include arena
#include packed
#include quantize_block
#include kv_write_unit state

struct Params {
    x: u32,
    width: u32,
    // [T], the place of each row below `capacity`: s is row s modulo `rows` of the state.
    slots: u32,
    capacity: u32,
    rows: u32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let unit = wg.x * LANES + lane;
    if (wg.y >= now.tokens || unit * state_UNIT_ELEMS >= p.width) {
        return;
    }
    let slot = arena[p.slots + wg.y];
    if (slot < p.capacity) {
        state_write_unit(p.x + wg.y * p.width, slot % p.rows, p.width, unit);
    }
}
