// What becomes of a gate and an up: both and act(gate) are written where somebody reads them, and what the gate lets through.
fn store_gated(at: u32, gate: f32, up: f32) {
    let activated = activate(gate);
    if (p.gate_y != NONE) {
        store(p.gate_y + at, gate);
    }
    if (p.up_y != NONE) {
        store(p.up_y + at, up);
    }
    if (p.activated != NONE) {
        store(p.activated + at, activated);
    }
    store(p.y + at, gated(activated, up));
}
