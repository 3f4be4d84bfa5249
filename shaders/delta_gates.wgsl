// DeltaGates: beta = sigmoid(b), decay = e^(a · softplus(dt + dt_bias)), a of its head; with a bound (below 0)
// decay = e^(bound · sigmoid(a · (dt + dt_bias))). One lane an element of decay.
#include numbers
#include arena
#include softplus

struct Params {
    // [T, heads]; [T, heads · of_head].
    b: u32,
    dt: u32,
    // [heads] and [heads · of_head] in `smalls`.
    a: u32,
    dt_bias: u32,
    beta: u32,
    decay: u32,
    heads: u32,
    of_head: u32,
    bound: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let i = (wg.y * grid.x + wg.x) * LANES + lane;
    let width = p.heads * p.of_head;
    if (i >= now.tokens * width) {
        return;
    }
    let of_row = i % width;
    let a = small(p.a + of_row / p.of_head);
    let x = load(p.dt + i) + small(p.dt_bias + of_row);
    var g = a * softplus(x);
    if (p.bound < 0.0) {
        g = p.bound / (1.0 + exp(-a * x));
    }
    store(p.decay + i, exp(g));
    if (i % p.of_head == 0u) {
        let head = i / p.of_head;
        store(p.beta + head, 1.0 / (1.0 + exp(-load(p.b + head))));
    }
}
