// What a gated activation makes of a gate and what it lets through.
#pragma once
#include "gate.cuh"

// activated = act(gate); the result is activated · up, and with a clamped SwiGLU activated · (clamp(up, -limit, limit) + 1),
// whose clamps NaN passes.
DEVICE float gated(int activation, float gate, float up, float alpha, float limit, float &activated) {
    activated = activate(activation, gate, alpha, limit);
    if (activation == ACT_CLAMPED_SWIGLU) {
        up = up > limit ? limit : up;
        up = (up < -limit ? -limit : up) + 1.0f;
    }
    return activated * up;
}
