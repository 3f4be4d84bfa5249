// What a gated activation makes of a gate and what it lets through.
#pragma once
#include "gate.cuh"

// What act(gate) is multiplied by: up; with a clamped SwiGLU clamp(up, -limit, limit) + 1, with a limited
// or bounded one clamp(up, -limit, limit). NaN passes the clamps.
DEVICE float let_through(int activation, float up, float limit) {
    if (activation != ACT_CLAMPED_SWIGLU && activation != ACT_LIMITED_SWIGLU && activation != ACT_BOUNDED_SWIGLU) return up;
    up = up > limit ? limit : up;
    up = up < -limit ? -limit : up;
    return activation == ACT_CLAMPED_SWIGLU ? up + 1.0f : up;
}

// activated = act(gate); the result is activated times what it lets through.
DEVICE float gated(int activation, float gate, float up, float alpha, float limit, float &activated) {
    activated = activate(activation, gate, alpha, limit);
    return activated * let_through(activation, up, limit);
}
