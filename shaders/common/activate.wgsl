// The functions of gates and convolutions, as ops/gated_act.rs numbers them: 0 the value itself, 1 silu, x · sigmoid(x),
// 2 clamped: c · sigmoid(alpha · c) with c = min(x, limit); what is no number stays so.
const ACT_NONE: u32 = 0u;
const ACT_CLAMPED_SWIGLU: u32 = 2u;

fn activate(x: f32) -> f32 {
    if (p.activation == ACT_NONE) {
        return x;
    }
    let c = select(x, p.limit, p.activation == ACT_CLAMPED_SWIGLU && x > p.limit);
    // For silu alpha is 1.
    return c / (1.0 + exp(-(p.alpha * c)));
}
