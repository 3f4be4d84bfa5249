// RmsNorm and the one to three MatMuls that read it, for one row: y_m = (x / sqrt(mean(x²) + eps) · w) · W_mᵀ.
//
// Phase 1 of a decode layer (q, k, v), its router, a dense layer's gate and up, and the final norm with lm_head. Every
// block norms the row for itself (a few KiB from the cache against megabytes of weights), then its warps take weight rows.
#include "common/staged.cuh"

struct MatrixRows {
    int format;
    gptr<const uint8_t> w;
    unsigned long long row_bytes;
    gptr<float> y;
    int rows;
};

// Grid: (blocks, R). x [·, n]; row r of the grid reads x[rows[r]] (rows null: x itself). normed [R, n] or null.
// Unused matrices have rows 0. q8: quantized formats take 8-bit activations.
// Dynamic shared memory: 4n bytes, and n + n/8 more where q8 is set. n % 32 = 0 where q8 is set.
extern "C" __global__ void __launch_bounds__(256)
    norm_matmul(gptr<const float> x, gptr<const int> row_index, gptr<const float> w, float eps, gptr<float> normed, int n,
                int q8, int format0, gptr<const uint8_t> w0, unsigned long long row_bytes0, gptr<float> y0, int rows0,
                int format1, gptr<const uint8_t> w1, unsigned long long row_bytes1, gptr<float> y1, int rows1,
                int format2, gptr<const uint8_t> w2, unsigned long long row_bytes2, gptr<float> y2, int rows2) {
    SHARED_DYNAMIC(float, row);
    int r = blockIdx.y;
    gptr<const float> source = x + (row_index != nullptr ? row_index[r] * n : 0);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += source[i] * source[i];
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = source[i] * inverse * w[i];
        row[i] = v;
        if (normed != nullptr && blockIdx.x == 0) normed[r * n + i] = v;
    }
    __syncthreads();
    StagedQ8 staged = staged_q8(row + n, n);
    if (q8) {
        stage_q8(row, n, staged);
        __syncthreads();
    }
    int warps = blockDim.x >> 5, all = rows0 + rows1 + rows2;
    for (int i = blockIdx.x * warps + (threadIdx.x >> 5); i < all; i += gridDim.x * warps) {
        int m = i < rows0 ? 0 : i < rows0 + rows1 ? 1 : 2;
        int o = m == 0 ? i : m == 1 ? i - rows0 : i - rows0 - rows1;
        int format = m == 0 ? format0 : m == 1 ? format1 : format2;
        unsigned long long row_bytes = m == 0 ? row_bytes0 : m == 1 ? row_bytes1 : row_bytes2;
        gptr<const uint8_t> matrix = m == 0 ? w0 : m == 1 ? w1 : w2;
        float v = staged_dot(format, matrix + o * row_bytes, n, row, staged, q8, 0);
        if ((threadIdx.x & 31) == 0) {
            if (m == 0) y0[r * rows0 + o] = v;
            else if (m == 1) y1[r * rows1 + o] = v;
            else y2[r * rows2 + o] = v;
        }
    }
}
KERNEL(norm_matmul)
