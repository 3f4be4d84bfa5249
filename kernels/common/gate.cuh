// The functions of gates, convolutions and feed-forward blocks.
#pragma once
#include "prelude.cuh"

DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

// As backends/cuda/src/ops/gated_act.rs numbers them.
enum Activation : int {
    ACT_NONE = 0,
    ACT_SILU = 1,
    ACT_CLAMPED_SWIGLU = 2,
    ACT_SIGMOID = 3,
    ACT_GELU_TANH = 4,
    ACT_RELU = 5,
    ACT_SOFTPLUS = 6,
    ACT_LIMITED_SWIGLU = 7,
    ACT_BOUNDED_SWIGLU = 8
};

// GELU by its tanh form, v · ½ (1 + tanh u) with u = √(2/π) (v + 0.044715 v³): v · sigmoid(2u).
DEVICE float gelu_tanh(float v) { return v / (1.0f + expf(-(v * (0.071354814f * v * v + 1.5957691f)))); }

// ln(1 + e^v). NaN stays NaN.
DEVICE float softplus(float v) { return fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v))); }

// act(v); alpha and limit are the clamped form's: c · sigmoid(alpha · c) with c = min(v, limit), and the bounded one's, whose
// alpha is 1; the limited one is min(silu(v), limit). NaN passes all of them.
DEVICE float activate(int activation, float v, float alpha, float limit) {
    if (activation == ACT_SILU) return silu(v);
    if (activation == ACT_CLAMPED_SWIGLU || activation == ACT_BOUNDED_SWIGLU) {
        float c = v > limit ? limit : v;
        return c / (1.0f + expf(-(alpha * c)));
    }
    if (activation == ACT_SIGMOID) return sigmoid(v);
    if (activation == ACT_GELU_TANH) return gelu_tanh(v);
    if (activation == ACT_RELU) return v < 0.0f ? 0.0f : v;
    if (activation == ACT_SOFTPLUS) return softplus(v);
    if (activation == ACT_LIMITED_SWIGLU) {
        float y = silu(v);
        return y > limit ? limit : y;
    }
    return v;
}
