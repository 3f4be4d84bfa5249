// The row that a product reads: x under its gate and, where there is one, under a norm of its heads, in front of the gate
// (norm_place 1) or behind it (2).

var<private> input_at: u32;
var<private> token_at: u32;
var<workgroup> head_squares: array<f32, LANES>;
var<workgroup> head_factors: array<f32, HEADS>;

// The function of the gate of an element: of its own logit, or of the one of the `gate_width` elements that it belongs to.
fn gate_value(at: u32) -> f32 {
    return activate(gate_element(token_at, at / max(p.gate_width, 1u), false));
}

fn gated_value(at: u32, value: f32) -> f32 {
    if (p.gate_width > 0u) {
        return value * gate_value(at);
    }
    return gated(gate_value(at), value);
}

fn head_normed(at: u32, value: f32) -> f32 {
    let width = p.cols / HEADS;
    let normed = value * head_factors[at / width];
    if (p.norm == NONE) {
        return normed;
    }
    return normed * small(p.norm + at / width * p.norm_step + at % width);
}

// What goes into the gate, and what comes out of it.
fn ungated_value(at: u32) -> f32 {
    let value = load(input_at + at);
    if (p.norm_place == 1u) {
        return head_normed(at, value);
    }
    return value;
}

fn passed_value(at: u32) -> f32 {
    return gated_value(at, ungated_value(at));
}

fn input_value(at: u32) -> f32 {
    if (p.norm_place == 2u) {
        return head_normed(at, passed_value(at));
    }
    return passed_value(at);
}

// The factors of the norm of each head: HEAD_LANES lanes take one together. In uniform control flow.
fn find_head_factors(lane: Lane) {
    let width = p.cols / HEADS;
    for (var first = 0u; first < HEADS; first += LANES / HEAD_LANES) {
        let head = first + lane.index / HEAD_LANES;
        var squares = 0.0;
        if (head < HEADS) {
            for (var i = lane.index % HEAD_LANES; i < width; i += HEAD_LANES) {
                let at = head * width + i;
                var value = load(input_at + at);
                if (p.norm_place == 2u) {
                    value = gated_value(at, value);
                }
                squares += value * value;
            }
        }
        head_squares[lane.index] = squares;
        workgroupBarrier();
        if (head < HEADS && lane.index % HEAD_LANES == 0u) {
            var total = 0.0;
            for (var i = 0u; i < HEAD_LANES; i++) {
                total += head_squares[lane.index + i];
            }
            head_factors[head] = 1.0 / sqrt(total / f32(width) + p.eps);
        }
        workgroupBarrier();
    }
}

// Stages the row of a token; `keep` says that this workgroup writes down what somebody reads of it. In uniform control flow.
fn stage_row(lane: Lane, token: u32, keep: bool) {
    let first = token * p.cols;
    input_at = p.x + first;
    token_at = token;
    if (p.norm_place != 0u) {
        find_head_factors(lane);
    }
    stage(lane, p.cols);
    if (!keep) {
        return;
    }
    for (var i = lane.index; i < p.cols; i += LANES) {
        if (i % max(p.gate_width, 1u) == 0u) {
            let at = i / max(p.gate_width, 1u);
            let value = activate(gate_element(token, at, true));
            if (p.activated != NONE) {
                store(p.activated + first / max(p.gate_width, 1u) + at, value);
            }
        }
        if (p.gated != NONE) {
            store(p.gated + first + i, passed_value(i));
        }
        if (p.normed != NONE) {
            store(p.normed + first + i, select(input_value(i), ungated_value(i), p.norm_place == 1u));
        }
    }
}
