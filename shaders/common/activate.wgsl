// The functions of gates and convolutions, as ops/gated_act.rs numbers them: 0 the value itself, 1 silu, x · sigmoid(x),
// 2 clamped: c · sigmoid(alpha · c) with c = min(x, limit), 3 sigmoid, 4 GELU by its tanh form, 5 max(x, 0), 6 ln(1 + e^x),
// 7 min(silu(x), limit), 8 silu(min(x, limit)); what is no number stays so.
const ACT_NONE: u32 = 0u;
const ACT_CLAMPED_SWIGLU: u32 = 2u;
const ACT_SIGMOID: u32 = 3u;
const ACT_GELU_TANH: u32 = 4u;
const ACT_RELU: u32 = 5u;
const ACT_SOFTPLUS: u32 = 6u;
const ACT_LIMITED_SWIGLU: u32 = 7u;
const ACT_BOUNDED_SWIGLU: u32 = 8u;

fn activate(x: f32) -> f32 {
    if (p.activation == ACT_NONE) {
        return x;
    }
    if (p.activation == ACT_RELU) {
        return select(x, 0.0, x < 0.0);
    }
    if (p.activation == ACT_SOFTPLUS) {
        return select(x, 0.0, x < 0.0) + log(1.0 + exp(-abs(x)));
    }
    let is_bounded = p.activation == ACT_CLAMPED_SWIGLU || p.activation == ACT_BOUNDED_SWIGLU;
    let c = select(x, p.limit, is_bounded && x > p.limit);
    // But in the clamped form alpha is 1. x · ½ (1 + tanh u), u = √(2/π) (x + 0.044715 x³), is x · sigmoid(2u).
    let exponent = select(p.alpha * c, c * (0.071354814 * c * c + 1.5957691), p.activation == ACT_GELU_TANH);
    let y = select(c, 1.0, p.activation == ACT_SIGMOID) / (1.0 + exp(-exponent));
    return select(y, p.limit, p.activation == ACT_LIMITED_SWIGLU && y > p.limit);
}
