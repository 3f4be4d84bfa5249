// LayerNorm: (x − mean) / sqrt(var + eps) · w (+ b) over rows of `width`. Grid (1, rows).
#include numbers
#include arena
#include lanes

struct Params {
    x: u32,
    y: u32,
    // The norm's weights and biases in `smalls`, or NONE: no bias.
    weight: u32,
    bias: u32,
    width: u32,
    axis: u32,
    rows_each: u32,
    eps: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= axis_rows(p.axis, p.rows_each)) {
        return;
    }
    let row = wg.y * p.width;
    var sum = 0.0;
    for (var i = lane.index; i < p.width; i += LANES) {
        sum += load(p.x + row + i);
    }
    let mean = sum_lanes(lane, sum) / f32(p.width);
    var squares = 0.0;
    for (var i = lane.index; i < p.width; i += LANES) {
        let x = load(p.x + row + i) - mean;
        squares += x * x;
    }
    let factor = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.width) + p.eps);
    for (var i = lane.index; i < p.width; i += LANES) {
        var y = (load(p.x + row + i) - mean) * factor * small(p.weight + i);
        if (p.bias != NONE) {
            y += small(p.bias + i);
        }
        store(p.y + row + i, y);
    }
}
