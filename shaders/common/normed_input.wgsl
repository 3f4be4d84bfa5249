// The row that products read: x, under a norm where there is one. In front of it a post-norm and the residual stream may stand:
// the row is then residual + RmsNorm(x).

var<private> input_at: u32;
var<private> residual_at: u32;
var<private> post_factor: f32;
var<private> norm_mean: f32;
var<private> norm_factor: f32;

fn post_normed(at: u32) -> f32 {
    return load(input_at + at) * post_factor * small(p.post_norm + at);
}

fn row_value(at: u32) -> f32 {
    if (p.post_norm == NONE) {
        return load(input_at + at);
    }
    return load(residual_at + at) + post_normed(at);
}

fn input_value(at: u32) -> f32 {
    let value = row_value(at);
    if (p.norm == NONE) {
        return value;
    }
    let normed = (value - norm_mean) * norm_factor * small(p.norm + at);
    if (p.norm_bias == NONE) {
        return normed;
    }
    return normed + small(p.norm_bias + at);
}

// Stages the row of a token; `keep` says that this workgroup writes down what somebody reads of it. In uniform control flow.
fn stage_row(lane: Lane, token: u32, keep: bool) {
    let first = token * p.cols;
    input_at = p.x + first;
    residual_at = p.post_residual + first;
    let width = f32(p.cols);
    if (p.post_norm != NONE) {
        var squares = 0.0;
        for (var i = lane.index; i < p.cols; i += LANES) {
            let value = load(input_at + i);
            squares += value * value;
        }
        post_factor = 1.0 / sqrt(sum_lanes(lane, squares) / width + p.post_eps);
    }
    norm_mean = 0.0;
    if (p.centred == 1u) {
        var sum = 0.0;
        for (var i = lane.index; i < p.cols; i += LANES) {
            sum += row_value(i);
        }
        norm_mean = sum_lanes(lane, sum) / width;
    }
    if (p.norm != NONE) {
        var squares = 0.0;
        for (var i = lane.index; i < p.cols; i += LANES) {
            let value = row_value(i) - norm_mean;
            squares += value * value;
        }
        norm_factor = 1.0 / sqrt(sum_lanes(lane, squares) / width + p.eps);
    }
    stage(lane, p.cols);
    if (!keep) {
        return;
    }
    for (var i = lane.index; i < p.cols; i += LANES) {
        if (p.post_normed != NONE) {
            store(p.post_normed + first + i, post_normed(i));
        }
        if (p.post_sum != NONE) {
            store(p.post_sum + first + i, row_value(i));
        }
        if (p.normed != NONE) {
            store(p.normed + first + i, input_value(i));
        }
    }
}
