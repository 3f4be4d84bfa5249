// Pointwise, as ops/pointwise.rs numbers them: 0 factor · x, 1 factor · tanh(x / factor), 2 min(max(x, −factor), factor), 3
// max(x, 0)²; what is no number stays so. One lane an element.
#include numbers
#include arena

struct Params {
    x: u32,
    y: u32,
    // Elements of each row along the axis.
    width: u32,
    axis: u32,
    function: u32,
    factor: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i >= axis_rows(p.axis, p.width)) {
        return;
    }
    let x = load(p.x + i);
    var y = p.factor * x;
    if (p.function == 1u) {
        // By e^(−2|x| / factor), which overflows nowhere.
        let e = exp(-2.0 * abs(x / p.factor));
        let capped = p.factor * ((1.0 - e) / (1.0 + e));
        y = select(capped, -capped, x < 0.0);
    } else if (p.function == 2u) {
        y = select(x, p.factor, x > p.factor);
        y = select(y, -p.factor, y < -p.factor);
    } else if (p.function == 3u) {
        y = select(x * x, 0.0, x < 0.0);
    }
    store(p.y + i, y);
}
