// GatedAct: gate, up → act(gate), and that times what it lets through (common/gated.wgsl). One lane an element.
#include numbers
#include arena
#include activate
#include gated

struct Params {
    gate: u32,
    up: u32,
    // act(gate), or NONE where nobody reads it.
    activated: u32,
    y: u32,
    // Elements of each row along the axis.
    width: u32,
    axis: u32,
    activation: u32,
    alpha: f32,
    limit: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i >= axis_rows(p.axis, p.width)) {
        return;
    }
    let activated = activate(load(p.gate + i));
    if (p.activated != NONE) {
        store(p.activated + i, activated);
    }
    store(p.y + i, gated(activated, load(p.up + i)));
}
