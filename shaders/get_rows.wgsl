// GetRows: x [T, D], the step's logits_rows [R] → [R, D]. One lane an element; grid (D / LANES, R).
#include numbers
#include arena

struct Params {
    x: u32,
    rows: u32,
    y: u32,
    width: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wg.x * LANES + lane;
    if (i >= p.width || wg.y >= now.logits_rows) {
        return;
    }
    let row = min(arena[p.rows + wg.y], now.tokens - 1u);
    arena[p.y + wg.y * p.width + i] = arena[p.x + row * p.width + i];
}
