// GatedAct: gate, up → act(gate) and act(gate) · up; act is silu, x · sigmoid(x). One lane an element.
#include numbers
#include arena

struct Params {
    gate: u32,
    up: u32,
    // act(gate), or NONE where nobody reads it.
    activated: u32,
    y: u32,
    // Elements of each row along the axis.
    width: u32,
    axis: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i >= axis_rows(p.axis, p.width)) {
        return;
    }
    let gate = load(p.gate + i);
    let activated = gate / (1.0 + exp(-gate));
    if (p.activated != NONE) {
        store(p.activated + i, activated);
    }
    store(p.y + i, activated * load(p.up + i));
}
