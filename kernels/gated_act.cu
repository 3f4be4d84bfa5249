// GatedAct: activated = silu(gate) = gate · sigmoid(gate), y = activated · up, elementwise.
#include "common/gate.cuh"

// Either output may be null. Grid: ceil(n / threads).
extern "C" __global__ void gated_act(aptr<const float> gate, aptr<const float> up, aptr<float> activated, aptr<float> y,
                                     int n) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = silu(gate[i]);
    if (activated != nullptr) activated[i] = a;
    if (y != nullptr) y[i] = a * up[i];
}
KERNEL(gated_act)

// A clamped SwiGLU: c = min(gate, limit), activated = c · sigmoid(alpha · c), y = activated · (clamp(up, -limit, limit) + 1).
// NaN passes the clamps. Either output may be null. Grid: ceil(n / threads).
extern "C" __global__ void gated_act_clamped(aptr<const float> gate, aptr<const float> up, aptr<float> activated,
                                             aptr<float> y, int n, float alpha, float limit) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float c = gate[i] > limit ? limit : gate[i];
    float a = c / (1.0f + expf(-(alpha * c)));
    if (activated != nullptr) activated[i] = a;
    if (y == nullptr) return;
    float through = up[i] > limit ? limit : up[i];
    through = through < -limit ? -limit : through;
    y[i] = a * (through + 1.0f);
}
KERNEL(gated_act_clamped)
