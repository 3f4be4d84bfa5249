// The functions of gates, convolutions and feed-forward blocks.
#pragma once
#include "prelude.cuh"

DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

// As backends/cuda/src/ops/gated_act.rs numbers them.
enum Activation : int { ACT_NONE = 0, ACT_SILU = 1, ACT_CLAMPED_SWIGLU = 2 };

// act(v); alpha and limit are the clamped form's: c · sigmoid(alpha · c) with c = min(v, limit). NaN passes the clamp.
DEVICE float activate(int activation, float v, float alpha, float limit) {
    if (activation == ACT_SILU) return silu(v);
    if (activation == ACT_CLAMPED_SWIGLU) {
        float c = v > limit ? limit : v;
        return c / (1.0f + expf(-(alpha * c)));
    }
    return v;
}
