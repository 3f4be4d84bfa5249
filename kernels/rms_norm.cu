// RmsNorm over the last axis: y = x / sqrt(mean(x²) + eps) · w; x, y [rows, n]. The per-head Q/K norm is the same with
// rows = T · heads.
#include "common/prelude.cuh"

// w [weights, n], of which row r takes part r % weights; or null: 1. Grid: rows.
extern "C" __global__ void rms_norm(aptr<const float> x, aptr<const float> w, aptr<float> y, float eps, int n,
                                    int weights) {
    wait_for_previous();
    aptr<const float> a = x + blockIdx.x * n;
    aptr<float> b = y + blockIdx.x * n;
    aptr<const float> by = w != nullptr ? w + blockIdx.x % weights * n : w;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += a[i] * a[i];
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) b[i] = by != nullptr ? a[i] * inverse * by[i] : a[i] * inverse;
}
KERNEL(rms_norm)
