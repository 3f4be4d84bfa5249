// MulHeads: each head of `head_width` elements times its factor. One lane an element.
#include numbers
#include arena

struct Params {
    x: u32,
    factors: u32,
    y: u32,
    // Elements of each row along the axis.
    width: u32,
    axis: u32,
    head_width: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i < axis_rows(p.axis, p.width)) {
        store(p.y + i, load(p.x + i) * load(p.factors + i / p.head_width));
    }
}
