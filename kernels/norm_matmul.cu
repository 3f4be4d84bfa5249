// RmsNorm and the one to three MatMuls that read it, for one row: y_m = scale_m · (x / sqrt(mean(x²) + eps) · w) · W_mᵀ + bias_m.
//
// q, k, v; the router with a shared expert's gate; the final norm with lm_head. Every block norms the row for itself (a few KiB
// from the cache against megabytes of weights), then its warps take weight rows; their first ones are on the way from memory
// meanwhile. Where there are few rows (a router's), a block shares each.
#include "common/staged.cuh"

struct MatrixRows {
    int format;
    gptr<const uint8_t> w;
    unsigned long long row_bytes;
    aptr<const float> bias;
    float scale;
    aptr<float> y;
    int rows;
};

// Row i of up to three matrices, counted through.
struct PickedRow {
    int format, o, rows;
    gptr<const uint8_t> row;
    unsigned long long row_bytes;
    aptr<const float> bias;
    float scale;
    aptr<float> y;
};
DEVICE PickedRow pick_row(const MatrixRows (&m)[3], int i) {
    int k = i < m[0].rows ? 0 : i < m[0].rows + m[1].rows ? 1 : 2;
    PickedRow p;
    p.o = k == 0 ? i : k == 1 ? i - m[0].rows : i - m[0].rows - m[1].rows;
    p.format = k == 0 ? m[0].format : k == 1 ? m[1].format : m[2].format;
    p.rows = k == 0 ? m[0].rows : k == 1 ? m[1].rows : m[2].rows;
    p.row_bytes = k == 0 ? m[0].row_bytes : k == 1 ? m[1].row_bytes : m[2].row_bytes;
    gptr<const uint8_t> w = k == 0 ? m[0].w : k == 1 ? m[1].w : m[2].w;
    p.row = w + p.o * p.row_bytes;
    p.bias = k == 0 ? m[0].bias : k == 1 ? m[1].bias : m[2].bias;
    p.scale = k == 0 ? m[0].scale : k == 1 ? m[1].scale : m[2].scale;
    p.y = k == 0 ? m[0].y : k == 1 ? m[1].y : m[2].y;
    return p;
}

// Rows a warp asks for before it waits for the launch in front.
constexpr int PREFETCHED_ROWS = 2;

// Grid: (blocks, R), 256 threads. x [·, n]; row r of the grid reads x[rows[r]] (rows null: x itself). normed [R, n] or null.
// Unused matrices have rows 0; bias [rows] or null. n % 4 = 0, n ≤ 8192. stage: which forms of the row the matrices take;
// n % 32 = 0 for 8 bits. shared_rows: a block takes one weight row at a time, else each warp one.
// Dynamic shared memory: 4n bytes for STAGE_F32, then n + n/8 for STAGE_Q8.
extern "C" __global__ void __launch_bounds__(256)
    norm_matmul(aptr<const float> x, aptr<const int> row_index, aptr<const float> w, float eps, aptr<float> normed, int n,
                int stage, int shared_rows, int format0, gptr<const uint8_t> w0, unsigned long long row_bytes0,
                aptr<const float> bias0, float scale0, aptr<float> y0, int rows0, int format1, gptr<const uint8_t> w1,
                unsigned long long row_bytes1, aptr<const float> bias1, float scale1, aptr<float> y1, int rows1, int format2,
                gptr<const uint8_t> w2, unsigned long long row_bytes2, aptr<const float> bias2, float scale2,
                aptr<float> y2, int rows2) {
    SHARED_DYNAMIC(float, base);
    SHARED(float, partial, 8);
    MatrixRows m[3];
    m[0].format = format0, m[0].w = w0, m[0].row_bytes = row_bytes0, m[0].y = y0, m[0].rows = rows0;
    m[1].format = format1, m[1].w = w1, m[1].row_bytes = row_bytes1, m[1].y = y1, m[1].rows = rows1;
    m[2].format = format2, m[2].w = w2, m[2].row_bytes = row_bytes2, m[2].y = y2, m[2].rows = rows2;
    m[0].bias = bias0, m[1].bias = bias1, m[2].bias = bias2, m[0].scale = scale0, m[1].scale = scale1, m[2].scale = scale2;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, all = rows0 + rows1 + rows2;
    int first = shared_rows ? blockIdx.x : blockIdx.x * warps + warp, stride = shared_rows ? gridDim.x : gridDim.x * warps;
    for (int i = first, k = 0; i < all && k < PREFETCHED_ROWS; i += stride, k++) {
        PickedRow p = pick_row(m, i);
        if (!shared_rows || warp == 0) warp_prefetch(p.row, p.row_bytes);
    }
    wait_for_previous();

    int r = blockIdx.y;
    aptr<float> copy = normed != nullptr && blockIdx.x == 0 ? normed + r * n : aptr<float>(nullptr);
    StagedQ8 staged = stage_normed(x + (row_index != nullptr ? row_index[r] * n : 0), w, eps, n, stage, base, copy);
    sptr<float> row = base;
    for (int i = first; i < all; i += stride) {
        PickedRow p = pick_row(m, i);
        int part = shared_rows ? int(threadIdx.x) : lane, width = shared_rows ? int(blockDim.x) : 32;
        float sum = warp_sum(staged_part(p.format, p.row, n, row, staged, stage, 0, part, width));
        if (shared_rows) {
            if (lane == 0) partial[warp] = sum;
            __syncthreads();
            sum = 0.0f;
            for (int k = 0; k < warps; k++) sum += partial[k];
            __syncthreads();
        }
        if (part == 0) {
            float v = sum * p.scale;
            p.y[r * p.rows + p.o] = p.bias != nullptr ? v + p.bias[p.o] : v;
        }
    }
}
KERNEL(norm_matmul)
