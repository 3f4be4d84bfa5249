// The row that products read: x, under a norm where there is one. In front of it a post-norm and the residual stream may stand:
// the row is then residual + RmsNorm(x).

// A row and its norm, as `normed_params` describes them.
struct NormedRow {
    x: u32,
    cols: u32,
    norm: u32,
    norm_bias: u32,
    centred: u32,
    eps: f32,
    normed: u32,
}

// The row of the parameters.
fn own_row() -> NormedRow {
    return NormedRow(p.x, p.cols, p.norm, p.norm_bias, p.centred, p.eps, p.normed);
}

var<private> source: NormedRow;
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
    if (source.norm == NONE) {
        return value;
    }
    let normed = (value - norm_mean) * norm_factor * small(source.norm + at);
    if (source.norm_bias == NONE) {
        return normed;
    }
    return normed + small(source.norm_bias + at);
}

// What the norms of a token's row multiply by. In uniform control flow.
fn find_factors(lane: Lane, token: u32) {
    let first = token * source.cols;
    input_at = source.x + first;
    residual_at = p.post_residual + first;
    let width = f32(source.cols);
    if (p.post_norm != NONE) {
        var squares = 0.0;
        for (var i = lane.index; i < source.cols; i += LANES) {
            let value = load(input_at + i);
            squares += value * value;
        }
        post_factor = 1.0 / sqrt(sum_lanes(lane, squares) / width + p.post_eps);
    }
    norm_mean = 0.0;
    if ((p.norms & 2u) != 0u) {
        var sum = 0.0;
        for (var i = lane.index; i < source.cols; i += LANES) {
            sum += row_value(i);
        }
        norm_mean = select(0.0, sum_lanes(lane, sum) / width, source.centred == 1u);
    }
    if ((p.norms & 1u) != 0u) {
        var squares = 0.0;
        for (var i = lane.index; i < source.cols; i += LANES) {
            let value = row_value(i) - norm_mean;
            squares += value * value;
        }
        norm_factor = 1.0 / sqrt(sum_lanes(lane, squares) / width + source.eps);
    }
}

// Writes down what somebody reads of the row: with `post`, what stands in front of the norm; with `normed`, what is behind it.
fn keep_row(lane: Lane, token: u32, post: bool, normed: bool) {
    let first = token * source.cols;
    for (var i = lane.index; i < source.cols; i += LANES) {
        if (post && p.post_normed != NONE) {
            store(p.post_normed + first + i, post_normed(i));
        }
        if (post && p.post_sum != NONE) {
            store(p.post_sum + first + i, row_value(i));
        }
        if (normed && source.normed != NONE) {
            store(source.normed + first + i, input_value(i));
        }
    }
}
