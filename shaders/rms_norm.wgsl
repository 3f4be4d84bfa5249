// RmsNorm: x / sqrt(mean(x²) + eps) · w over rows of `width`; with heads, each head is a row. A post-norm
// also has the residual stream: sum = residual + y. Grid (heads, rows).
#include numbers
#include arena
#include lanes

struct Params {
    x: u32,
    // Or NONE, where there is a sum.
    y: u32,
    // What is added, or NONE, and the sum.
    residual: u32,
    sum: u32,
    // The norm's weights in `smalls`, or NONE: 1; and from those of a head to the next one's.
    weight: u32,
    weight_step: u32,
    width: u32,
    axis: u32,
    rows_each: u32,
    eps: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= axis_rows(p.axis, p.rows_each)) {
        return;
    }
    let row = (wg.y * grid.x + wg.x) * p.width;
    var squares = 0.0;
    for (var i = lane.index; i < p.width; i += LANES) {
        let x = load(p.x + row + i);
        squares += x * x;
    }
    let mean = sum_lanes(lane, squares) / f32(p.width);
    let factor = 1.0 / sqrt(mean + p.eps);
    for (var i = lane.index; i < p.width; i += LANES) {
        var y = load(p.x + row + i) * factor;
        if (p.weight != NONE) {
            y *= small(p.weight + wg.x * p.weight_step + i);
        }
        if (p.y != NONE) {
            store(p.y + row + i, y);
        }
        if (p.residual != NONE) {
            store(p.sum + row + i, load(p.residual + row + i) + y);
        }
    }
}
