// PositionScale: x · (1 + scale · ln(1 + ⌊(position + offset) / length⌋)). One lane an element.
#include numbers
#include arena

struct Params {
    x: u32,
    y: u32,
    positions: u32,
    // Elements of each row along the axis.
    width: u32,
    axis: u32,
    length: u32,
    offset: u32,
    scale: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i < axis_rows(p.axis, p.width)) {
        let steps = (arena[p.positions + i / p.width] + p.offset) / p.length;
        store(p.y + i, load(p.x + i) * (1.0 + p.scale * log(1.0 + f32(steps))));
    }
}
