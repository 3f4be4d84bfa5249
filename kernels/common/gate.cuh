// Activations of the feed-forward blocks.
#pragma once
#include "prelude.cuh"

enum Activation : int { ACTIVATION_SILU = 0, ACTIVATION_GELU = 1, ACTIVATION_RELU = 2, ACTIVATION_CLAMPED_SWIGLU = 3 };

DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

// act(v): silu, gelu (tanh form), relu. alpha scales silu's argument: v · sigmoid(alpha · v).
DEVICE float activate(int activation, float alpha, float v) {
    if (activation == ACTIVATION_GELU)
        return 0.5f * v * (1.0f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
    if (activation == ACTIVATION_RELU) return fmaxf(v, 0.0f);
    return alpha == 1.0f ? silu(v) : v * sigmoid(alpha * v);
}

// The clamped form: gate limited above, up on both sides, and up + 1 multiplies.
DEVICE float gated(int activation, float alpha, float clamp, float gate, float up) {
    if (activation == ACTIVATION_CLAMPED_SWIGLU) {
        float g = gate > clamp ? clamp : gate;
        float u = up > clamp ? clamp : (up < -clamp ? -clamp : up);
        return g * sigmoid(alpha * g) * (u + 1.0f);
    }
    return activate(activation, alpha, gate) * up;
}
