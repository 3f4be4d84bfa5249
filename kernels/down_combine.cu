// Down projection of the chosen experts, their weighted sum, residual Add, for one token. Phase 6 of a decode layer:
// y = residual + Σ_k weight_k · (x_k · W[id_k]ᵀ), k ascending.
#include "common/staged.cuh"

// Grid: blocks. x [K, n], ids [K], weights [K]; down [K, rows] and combined [rows] or null. q8 as in norm_matmul.cu; dynamic
// shared memory K·(n + n/8) bytes where it is set.
extern "C" __global__ void __launch_bounds__(256)
    down_combine(gptr<const float> x, gptr<const int> ids, gptr<const float> weights, int format, gptr<const uint8_t> w,
                 unsigned long long row_bytes, unsigned long long expert_bytes, gptr<const float> residual,
                 gptr<float> down, gptr<float> combined, gptr<float> y, int n, int rows, int experts_per_token, int q8) {
    SHARED_DYNAMIC(float, base);
    StagedQ8 staged = staged_q8(base, experts_per_token * n);
    if (q8) {
        stage_q8(x, experts_per_token * n, staged);
        __syncthreads();
    }
    int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    for (int o = blockIdx.x * warps + (threadIdx.x >> 5); o < rows; o += gridDim.x * warps) {
        float sum = 0.0f;
        for (int k = 0; k < experts_per_token; k++) {
            float v = staged_dot(format, w + (ids[k] * expert_bytes + o * row_bytes), n, x, staged, q8, k);
            if (down != nullptr && lane == 0) down[k * rows + o] = v;
            sum += weights[k] * v;
        }
        if (lane == 0) {
            if (combined != nullptr) combined[o] = sum;
            y[o] = residual[o] + sum;
        }
    }
}
KERNEL(down_combine)
