// A post-norm and what stands around it: scale · (residual + RmsNorm(x)), where x may be the sum of two rows, each under a norm of
// its own. A workgroup a row. Grid (T).
#include numbers
#include arena
#include lanes

struct Params {
    width: u32,
    // x itself, or the first of two rows; then of each its norm's weights in `smalls`, or NONE: 1, eps, and where its norm goes,
    // or NONE.
    a: u32,
    a_norm: u32,
    a_eps: f32,
    a_normed: u32,
    // NONE: x is the first.
    b: u32,
    b_norm: u32,
    b_eps: f32,
    b_normed: u32,
    // Where x, its norm and the sum with the residual stream go, if somebody reads them; or NONE.
    sum: u32,
    norm: u32,
    eps: f32,
    normed: u32,
    residual: u32,
    added: u32,
    scale: f32,
    y: u32,
}

var<private> at: u32;
var<private> factor_a: f32;
var<private> factor_b: f32;

fn weighed(value: f32, norm: u32, i: u32) -> f32 {
    if (norm == NONE) {
        return value;
    }
    return value * small(norm + i);
}

fn put(to: u32, i: u32, value: f32) {
    if (to != NONE) {
        store(to + at + i, value);
    }
}

fn normed_a(i: u32) -> f32 {
    return weighed(load(p.a + at + i) * factor_a, p.a_norm, i);
}

fn normed_b(i: u32) -> f32 {
    return weighed(load(p.b + at + i) * factor_b, p.b_norm, i);
}

// x: what the post-norm is of.
fn row_element(i: u32) -> f32 {
    if (p.b == NONE) {
        return load(p.a + at + i);
    }
    return normed_a(i) + normed_b(i);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.x >= now.tokens) {
        return;
    }
    at = wg.x * p.width;
    let width = f32(p.width);
    if (p.b != NONE) {
        var squares = vec4<f32>(0.0);
        for (var i = lane.index; i < p.width; i += LANES) {
            let a = load(p.a + at + i);
            let b = load(p.b + at + i);
            squares += vec4<f32>(a * a, b * b, 0.0, 0.0);
        }
        squares = sum_lanes4(lane, squares);
        factor_a = 1.0 / sqrt(squares.x / width + p.a_eps);
        factor_b = 1.0 / sqrt(squares.y / width + p.b_eps);
    }
    var squares = 0.0;
    for (var i = lane.index; i < p.width; i += LANES) {
        let value = row_element(i);
        squares += value * value;
    }
    let factor = 1.0 / sqrt(sum_lanes(lane, squares) / width + p.eps);
    for (var i = lane.index; i < p.width; i += LANES) {
        if (p.b != NONE) {
            put(p.a_normed, i, normed_a(i));
            put(p.b_normed, i, normed_b(i));
            put(p.sum, i, row_element(i));
        }
        let value = weighed(row_element(i) * factor, p.norm, i);
        put(p.normed, i, value);
        let added = load(p.residual + at + i) + value;
        put(p.added, i, added);
        store(p.y + at + i, added * p.scale);
    }
}
