// GatedAct: gate, up → act(gate) and act(gate) · up; clamped, times clamp(up, −limit, limit) + 1; limited, times that clamp. One lane an element.
#include numbers
#include arena
#include activate

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
    var up = load(p.up + i);
    if (p.activation == ACT_CLAMPED_SWIGLU || p.activation == ACT_LIMITED_SWIGLU) {
        up = select(up, p.limit, up > p.limit);
        up = select(up, -p.limit, up < -p.limit) + select(0.0, 1.0, p.activation == ACT_CLAMPED_SWIGLU);
    }
    store(p.y + i, activated * up);
}
