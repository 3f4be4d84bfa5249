// MatMul and the residual Add behind it, for one row: y = residual + (scale · x · Wᵀ + bias).
#include "common/staged.cuh"

// Grid: blocks. x [n]; product [rows] or null: the value before the addition; bias [rows] or null. stage as in norm_matmul.cu;
// dynamic shared memory staged_words(n) words for STAGE_Q8.
extern "C" __global__ void __launch_bounds__(256)
    matmul_residual(aptr<const float> x, int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                    aptr<const float> bias, float scale, aptr<const float> residual, aptr<float> product, aptr<float> y, int n,
                    int rows, int stage) {
    SHARED_DYNAMIC(float, base);
    int warps = blockDim.x >> 5, first = blockIdx.x * warps + (threadIdx.x >> 5);
    if (first < rows) warp_prefetch(w + first * row_bytes, row_bytes);
    wait_for_previous();
    StagedQ8 staged = staged_q8(base, n);
    if (stage & STAGE_Q8) {
        stage_q8(x, n, staged);
        __syncthreads();
    }
    matmul_rows(format, w, row_bytes, bias, scale, residual, product, y, n, rows, x, staged, stage, first,
                gridDim.x * warps);
}
KERNEL(matmul_residual)
