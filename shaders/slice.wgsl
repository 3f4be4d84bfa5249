// Slice: of each head of `head_width` elements those from `start` on, `len` of them. One lane an element of the result.
#include numbers
#include arena

struct Params {
    x: u32,
    y: u32,
    // Elements of each row of the result along the axis.
    width: u32,
    axis: u32,
    head_width: u32,
    start: u32,
    len: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i < axis_rows(p.axis, p.width)) {
        arena[p.y + i] = arena[p.x + i / p.len * p.head_width + p.start + i % p.len];
    }
}
