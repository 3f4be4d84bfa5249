// HyperGates: w [T, (2 + n)·n] → pre [T, n], post [T, n], comb [T, n·n]; without mixing (iterations 0) w [T, n] → pre.
// pre = sigmoid(w·scale₀ + base) + ε; post = 2·sigmoid(w·scale₁ + base); comb = softmax over k of (w·scale₂ + base)_jk, + ε, whose
// columns are then divided by their sums + ε, and iterations − 1 times its rows and its columns. One lane a row.
#include numbers
#include arena

struct Params {
    w: u32,
    // In `smalls`.
    scale: u32,
    base: u32,
    // Or NONE.
    pre: u32,
    post: u32,
    comb: u32,
    iterations: u32,
    eps: f32,
    axis: u32,
}

const ELEMS: u32 = STREAMS * STREAMS;

var<private> mixing: array<f32, ELEMS>;

// Element i of row `row` under the scale of its part.
fn value(row: u32, width: u32, i: u32, part: u32) -> f32 {
    return load(p.w + row * width + i) * small(p.scale + part) + small(p.base + i);
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

// Divides STREAMS elements, `step` apart, by their sum + ε.
fn divide_line(first: u32, step: u32) {
    var sum = p.eps;
    for (var i = 0u; i < STREAMS; i++) {
        sum += mixing[first + i * step];
    }
    for (var i = 0u; i < STREAMS; i++) {
        mixing[first + i * step] /= sum;
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.x * LANES + lane;
    if (row >= axis_rows(p.axis, 1u)) {
        return;
    }
    let width = select(STREAMS, (2u + STREAMS) * STREAMS, p.iterations > 0u);
    for (var i = 0u; i < STREAMS; i++) {
        if (p.pre != NONE) {
            store(p.pre + row * STREAMS + i, sigmoid(value(row, width, i, 0u)) + p.eps);
        }
        if (p.post != NONE) {
            store(p.post + row * STREAMS + i, 2.0 * sigmoid(value(row, width, STREAMS + i, 1u)));
        }
    }
    if (p.comb == NONE) {
        return;
    }
    for (var j = 0u; j < STREAMS; j++) {
        var largest = -3.4e38;
        for (var k = 0u; k < STREAMS; k++) {
            let x = value(row, width, 2u * STREAMS + j * STREAMS + k, 2u);
            mixing[j * STREAMS + k] = x;
            largest = max(largest, x);
        }
        var sum = 0.0;
        for (var k = 0u; k < STREAMS; k++) {
            let share = exp(mixing[j * STREAMS + k] - largest);
            mixing[j * STREAMS + k] = share;
            sum += share;
        }
        for (var k = 0u; k < STREAMS; k++) {
            mixing[j * STREAMS + k] = mixing[j * STREAMS + k] / sum + p.eps;
        }
    }
    for (var k = 0u; k < STREAMS; k++) {
        divide_line(k, STREAMS);
    }
    for (var i = 1u; i < p.iterations; i++) {
        for (var j = 0u; j < STREAMS; j++) {
            divide_line(j * STREAMS, 1u);
        }
        for (var k = 0u; k < STREAMS; k++) {
            divide_line(k, STREAMS);
        }
    }
    for (var i = 0u; i < ELEMS; i++) {
        store(p.comb + row * ELEMS + i, mixing[i]);
    }
}
