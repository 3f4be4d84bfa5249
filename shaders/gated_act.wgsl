// GatedAct: gate, up → act(gate) and act(gate) · up; act is silu, x · sigmoid(x). Clamped: c · sigmoid(alpha · c) with
// c = min(gate, limit), times clamp(up, −limit, limit) + 1; what is no number stays so. Or act is the sigmoid alone. One lane
// an element.
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
    // 0: silu; 1: the clamped form, with the two numbers below; 2: the sigmoid.
    function: u32,
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
    var gate = load(p.gate + i);
    var up = load(p.up + i);
    if (p.function == 1u) {
        gate = select(gate, p.limit, gate > p.limit);
        up = select(up, p.limit, up > p.limit);
        up = select(up, -p.limit, up < -p.limit) + 1.0;
    }
    // But in the clamped form alpha is 1.
    let through = select(gate, 1.0, p.function == 2u);
    let activated = through / (1.0 + exp(-(p.alpha * gate)));
    if (p.activated != NONE) {
        store(p.activated + i, activated);
    }
    store(p.y + i, activated * up);
}
