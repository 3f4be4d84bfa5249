// Concat: of each head its `from_a` elements of a, then its `from_b` elements of b. One lane an element of the result.
#include numbers
#include arena

struct Params {
    a: u32,
    b: u32,
    y: u32,
    // Elements of each row of the result along the axis.
    width: u32,
    axis: u32,
    from_a: u32,
    from_b: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    if (i >= axis_rows(p.axis, p.width)) {
        return;
    }
    let head = i / (p.from_a + p.from_b);
    let j = i % (p.from_a + p.from_b);
    if (j < p.from_a) {
        arena[p.y + i] = arena[p.a + head * p.from_a + j];
    } else {
        arena[p.y + i] = arena[p.b + head * p.from_b + j - p.from_a];
    }
}
