// What a gated activation makes of act(gate) and what it lets through: act(gate) · up; with a clamped SwiGLU
// act(gate) · (clamp(up, −limit, limit) + 1), with a limited or bounded one act(gate) · clamp(up, −limit, limit).
fn gated(activated: f32, up: f32) -> f32 {
    if (p.activation != ACT_CLAMPED_SWIGLU && p.activation != ACT_LIMITED_SWIGLU && p.activation != ACT_BOUNDED_SWIGLU) {
        return activated * up;
    }
    var through = select(up, p.limit, up > p.limit);
    through = select(through, -p.limit, through < -p.limit);
    return activated * (through + select(0.0, 1.0, p.activation == ACT_CLAMPED_SWIGLU));
}
