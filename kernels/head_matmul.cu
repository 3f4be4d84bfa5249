// HeadMatMul, every format: y[t, h, o] = Σᵢ x[t, h, i] · W[h, o, i]; x [T, heads, n], W [heads, ·, n], heads head_bytes apart, y
// [T, heads, rows]. Transposed: y[t, h, i] = Σ_o x[t, h, o] · W[h, o, i]; x [T, heads, rows], y [T, heads, n].
#include "common/dot.cuh"

// Row h of tokens t0 … t0 + TT − 1, those past the last token repeating it.
template <int TT> DEVICE void head_rows(int t0, int tokens, int heads, int h, int (&r)[TT]) {
#pragma unroll
    for (int t = 0; t < TT; t++) r[t] = (t0 + t < tokens ? t0 + t : tokens - 1) * heads + h;
}

template <int TT>
DEVICE void store_head_rows(const float (&acc)[TT], aptr<float> y, int rows, int o, int heads, int h, int t0, int tokens) {
    if ((threadIdx.x & 31) != 0) return;
#pragma unroll
    for (int t = 0; t < TT; t++)
        if (t0 + t < tokens) y[((t0 + t) * heads + h) * rows + o] = acc[t];
}

// One warp a weight row, decoded once for TT tokens. Grid: (ceil(rows / warps), ceil(T / TT), heads).
#define HEAD_MATMUL_F32(name, TT)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(int format, gptr<const uint8_t> w, unsigned long long row_bytes, unsigned long long head_bytes,           \
             aptr<const float> x, aptr<float> y, int n, int rows, int tokens) {                                        \
        wait_for_previous();                                                                                           \
        int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), t0 = blockIdx.y * TT;                             \
        if (o >= rows) return;                                                                                         \
        int r[TT];                                                                                                     \
        head_rows<TT>(t0, tokens, gridDim.z, blockIdx.z, r);                                                           \
        float acc[TT];                                                                                                 \
        warp_dot_f32<TT>(format, w + (blockIdx.z * head_bytes + o * row_bytes), n, x, r, acc);                         \
        store_head_rows<TT>(acc, y, rows, o, gridDim.z, blockIdx.z, t0, tokens);                                       \
    }                                                                                                                  \
    KERNEL(name)

#define HEAD_MATMUL_Q8(name, TT)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(int format, gptr<const uint8_t> w, unsigned long long row_bytes, unsigned long long head_bytes,           \
             aptr<const int> q, aptr<const float> q_scale, aptr<float> y, int n, int rows, int tokens) {               \
        wait_for_previous();                                                                                           \
        int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), t0 = blockIdx.y * TT;                             \
        if (o >= rows) return;                                                                                         \
        int r[TT];                                                                                                     \
        head_rows<TT>(t0, tokens, gridDim.z, blockIdx.z, r);                                                           \
        float acc[TT];                                                                                                 \
        warp_dot_q8<TT>(format, w + (blockIdx.z * head_bytes + o * row_bytes), n, q, q_scale, r, acc);                 \
        store_head_rows<TT>(acc, y, rows, o, gridDim.z, blockIdx.z, t0, tokens);                                       \
    }                                                                                                                  \
    KERNEL(name)

HEAD_MATMUL_F32(head_matmul_f32_t1, 1)
HEAD_MATMUL_F32(head_matmul_f32_t8, 8)
HEAD_MATMUL_Q8(head_matmul_q8_t1, 1)
HEAD_MATMUL_Q8(head_matmul_q8_t8, 8)

// A lane takes 32 columns, the block's warps the rows in turn; their sums are added in the order of the warps. Grid:
// (ceil(n / 1024), heads, T).
extern "C" __global__ void __launch_bounds__(256)
    head_matmul_transposed(int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                           unsigned long long head_bytes, aptr<const float> x, aptr<float> y, int n, int rows) {
    SHARED(float, sums, 32 * 32);
    wait_for_previous();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int g = blockIdx.x * 32 + lane, of_head = blockIdx.z * gridDim.y + blockIdx.y;
    float acc[32] = {};
    for (int o = warp; g * 32 < n && o < rows; o += warps) {
        gptr<const uint8_t> row = w + (blockIdx.y * head_bytes + o * row_bytes);
        float v = x[of_head * rows + o];
        if (format <= FORMAT_BF16) {
#pragma unroll
            for (int i = 0; i < 32; i++)
                if (32 * g + i < n) acc[i] += v * decode_float(format, row, 32 * g + i);
        } else {
            Group32 group = decode_group(format, row, n, g);
#pragma unroll
            for (int i = 0; i < 32; i++)
                acc[i] += v * (group.scale[i >> 4] * float(byte_of(group.code[i >> 2], i & 3)) - group.minimum[i >> 4]);
        }
    }
    for (int turn = 0; turn < warps; turn++) {
        if (warp == turn)
#pragma unroll
            for (int i = 0; i < 32; i++) sums[i * 32 + lane] = turn == 0 ? acc[i] : sums[i * 32 + lane] + acc[i];
        __syncthreads();
    }
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) {
        int column = blockIdx.x * 1024 + i;
        if (column < n) y[of_head * n + column] = sums[(i & 31) * 32 + (i >> 5)];
    }
}
KERNEL(head_matmul_transposed)
