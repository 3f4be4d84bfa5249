// RmsNorm over the last axis: y = x / sqrt(mean(x²) + eps) · w; x, y [rows, n]. The per-head Q/K norm is the same with
// rows = T · heads. A post-norm also has the residual stream: sum = residual + y.
#include "common/prelude.cuh"

// w [weights, n], of which row r takes part r % weights; or null: 1. residual [rows, n], or null: no sum; then y may be null.
// Grid: rows.
extern "C" __global__ void rms_norm(aptr<const float> x, aptr<const float> w, aptr<float> y, float eps, int n, int weights,
                                    aptr<const float> residual, aptr<float> sum) {
    wait_for_previous();
    aptr<const float> a = x + blockIdx.x * n;
    aptr<const float> by = w != nullptr ? w + blockIdx.x % weights * n : w;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += a[i] * a[i];
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = by != nullptr ? a[i] * inverse * by[i] : a[i] * inverse;
        if (y != nullptr) y[blockIdx.x * n + i] = v;
        if (residual != nullptr) sum[blockIdx.x * n + i] = residual[blockIdx.x * n + i] + v;
    }
}
KERNEL(rms_norm)
