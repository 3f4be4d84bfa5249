// MatMul and the residual Add behind it, for one row: y = residual + x · Wᵀ. Phase 3 of a decode layer.
#include "common/staged.cuh"

// Grid: blocks. x [n]; product [rows] or null: the value before the addition. q8 as in norm_matmul.cu; dynamic shared
// memory n + n/8 bytes where it is set.
extern "C" __global__ void __launch_bounds__(256)
    matmul_residual(gptr<const float> x, int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                    gptr<const float> residual, gptr<float> product, gptr<float> y, int n, int rows, int q8) {
    SHARED_DYNAMIC(float, base);
    StagedQ8 staged = staged_q8(base, n);
    if (q8) {
        stage_q8(x, n, staged);
        __syncthreads();
    }
    int warps = blockDim.x >> 5;
    for (int o = blockIdx.x * warps + (threadIdx.x >> 5); o < rows; o += gridDim.x * warps) {
        float v = staged_dot(format, w + o * row_bytes, n, x, staged, q8, 0);
        if ((threadIdx.x & 31) == 0) {
            if (product != nullptr) product[o] = v;
            y[o] = residual[o] + v;
        }
    }
}
KERNEL(matmul_residual)
