// A norm and the one to four MatMuls that read it, for one row: y_m = scale_m · norm(x) · W_mᵀ + bias_m, within ±limit_m. What
// makes x may stand in front: a post-norm and the residual stream (common/staged.cuh).
//
// q, k, v and a gate; the router with a shared expert's gate; the final norm with lm_head. Every block norms the row for itself
// (a few KiB from the cache against megabytes of weights), then its warps take weight rows; their first ones are on the way
// from memory meanwhile. Where there are few rows (a router's), a block shares each.
#include "common/staged.cuh"

struct MatrixRows {
    int format;
    gptr<const uint8_t> w;
    unsigned long long row_bytes;
    aptr<const float> bias;
    float scale, limit;
    aptr<float> raw, y;
    int rows;
};

// Row i of up to four matrices, counted through.
struct PickedRow {
    int format, o, rows;
    gptr<const uint8_t> row;
    unsigned long long row_bytes;
    aptr<const float> bias;
    float scale, limit;
    aptr<float> raw, y;
};
DEVICE PickedRow pick_row(const MatrixRows (&m)[4], int i) {
    PickedRow p;
    p.o = i;
    p.rows = m[0].rows;
    p.format = m[0].format;
    p.row = m[0].w;
    p.row_bytes = m[0].row_bytes;
    p.bias = m[0].bias;
    p.scale = m[0].scale;
    p.limit = m[0].limit;
    p.raw = m[0].raw;
    p.y = m[0].y;
    int before = m[0].rows;
#pragma unroll
    for (int k = 1; k < 4; k++) {
        if (i >= before) {
            p.o = i - before;
            p.rows = m[k].rows;
            p.format = m[k].format;
            p.row = m[k].w;
            p.row_bytes = m[k].row_bytes;
            p.bias = m[k].bias;
            p.scale = m[k].scale;
            p.limit = m[k].limit;
            p.raw = m[k].raw;
            p.y = m[k].y;
        }
        before += m[k].rows;
    }
    p.row = p.row + p.o * p.row_bytes;
    return p;
}

// Rows a warp asks for before it waits for the launch in front.
constexpr int PREFETCHED_ROWS = 2;

#define MATRIX(k)                                                                                                             \
    int format##k, gptr<const uint8_t> w##k, unsigned long long row_bytes##k, aptr<const float> bias##k, float scale##k,      \
        float limit##k, aptr<float> raw##k, aptr<float> y##k, int rows##k
#define TAKE(k)                                                                                                               \
    m[k].format = format##k, m[k].w = w##k, m[k].row_bytes = row_bytes##k, m[k].bias = bias##k, m[k].scale = scale##k,        \
    m[k].limit = limit##k, m[k].raw = raw##k, m[k].y = y##k, m[k].rows = rows##k

// Grid: (blocks, R), 256 threads. x [·, n]; row r of the grid reads x[row_index[r]] (row_index null: x itself). normed [R, n] or
// null. post_w null: nothing is in front; else R = 1 and post_normed [n] may be null. Unused matrices have rows 0; bias [rows] or
// null; limit 0: none; raw [rows] or null: before the limit. n % 4 = 0, n ≤ 8192. stage: which forms of the row the matrices
// take; n % 32 = 0 for 8 bits. shared_rows: a block takes one weight row at a time, else each warp one.
// Dynamic shared memory: 4n bytes for STAGE_F32, then staged_words(n) words for STAGE_Q8.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(2, 3, 3))
    norm_matmul(aptr<const float> x, aptr<const int> row_index, aptr<const float> post_w, float post_eps,
                aptr<const float> residual, aptr<float> post_normed, aptr<float> post_sum, aptr<const float> w,
                aptr<const float> norm_bias, float eps, int centred, aptr<float> normed, int n, int stage, int shared_rows,
                MATRIX(0), MATRIX(1), MATRIX(2), MATRIX(3)) {
    SHARED_DYNAMIC(float, base);
    SHARED(float, partial, 8);
    MatrixRows m[4];
    TAKE(0), TAKE(1), TAKE(2), TAKE(3);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, all = rows0 + rows1 + rows2 + rows3;
    int first = shared_rows ? blockIdx.x : blockIdx.x * warps + warp, stride = shared_rows ? gridDim.x : gridDim.x * warps;
    for (int i = first, k = 0; i < all && k < PREFETCHED_ROWS; i += stride, k++) {
        PickedRow p = pick_row(m, i);
        if (!shared_rows || warp == 0) warp_prefetch(p.row, p.row_bytes);
    }
    wait_for_previous();

    int r = blockIdx.y;
    bool keeps = blockIdx.x == 0;
    RowNorm norm;
    norm.w = w;
    norm.b = norm_bias;
    norm.eps = eps;
    norm.centred = centred;
    PostNorm post;
    post.w = post_w;
    post.residual = residual;
    post.eps = post_eps;
    post.normed = keeps ? post_normed : aptr<float>(nullptr);
    post.sum = keeps ? post_sum : aptr<float>(nullptr);
    aptr<float> copy = normed != nullptr && keeps ? normed + r * n : aptr<float>(nullptr);
    StagedQ8 staged = stage_normed(x + (row_index != nullptr ? row_index[r] * n : 0), post, norm, n, stage, base, copy);
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
            if (p.bias != nullptr) v += p.bias[p.o];
            if (p.raw != nullptr) p.raw[r * p.rows + p.o] = v;
            if (p.limit > 0.0f) {
                v = v > p.limit ? p.limit : v;
                v = v < -p.limit ? -p.limit : v;
            }
            p.y[r * p.rows + p.o] = v;
        }
    }
}
KERNEL(norm_matmul)
