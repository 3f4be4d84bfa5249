// GatedAct: activated = act(gate), y = activated · up, elementwise; a clamped SwiGLU has y = activated · (clamp(up, -limit,
// limit) + 1), whose clamps NaN passes.
#include "common/gate.cuh"

// Either output may be null. Grid: ceil(n / threads).
extern "C" __global__ void gated_act(aptr<const float> gate, aptr<const float> up, aptr<float> activated, aptr<float> y,
                                     int n, int activation, float alpha, float limit) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = activate(activation, gate[i], alpha, limit);
    if (activated != nullptr) activated[i] = a;
    if (y == nullptr) return;
    float through = up[i];
    if (activation == ACT_CLAMPED_SWIGLU) {
        through = through > limit ? limit : through;
        through = (through < -limit ? -limit : through) + 1.0f;
    }
    y[i] = a * through;
}
KERNEL(gated_act)
