// MatMul, every format: y[t, o] = scale · Σᵢ x[t, i] · W[o, i] + bias[o]; x [T, n], W [rows, n] in `format`, y [T, y_stride].
//
// One warp a weight row; the row is decoded once for TT tokens. Grid: (ceil(rows / warps), ceil(T / TT)).
#include "common/dot.cuh"

// Rows t0 … t0 + TT − 1, those past the last token repeating it.
template <int TT> DEVICE void token_rows(int t0, int tokens, int (&r)[TT]) {
#pragma unroll
    for (int t = 0; t < TT; t++) r[t] = t0 + t < tokens ? t0 + t : tokens - 1;
}

template <int TT>
DEVICE void store_rows(const float (&acc)[TT], aptr<const float> bias, float scale, aptr<float> y, int y_stride, int o,
                       int t0, int tokens) {
    if ((threadIdx.x & 31) != 0) return;
    float b = bias != nullptr ? bias[o] : 0.0f;
#pragma unroll
    for (int t = 0; t < TT; t++)
        if (t0 + t < tokens) {
            float v = acc[t] * scale;
            y[(t0 + t) * y_stride + o] = bias != nullptr ? v + b : v;
        }
}

#define MATMUL_F32(name, TT)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(int format, gptr<const uint8_t> w, unsigned long long row_bytes, aptr<const float> x,                     \
             aptr<const float> bias, float scale, aptr<float> y, int n, int rows, int tokens, int y_stride) {          \
        wait_for_previous();                                                                                           \
        int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), t0 = blockIdx.y * TT;                             \
        if (o >= rows) return;                                                                                         \
        int r[TT];                                                                                                     \
        token_rows<TT>(t0, tokens, r);                                                                                 \
        float acc[TT];                                                                                                 \
        warp_dot_f32<TT>(format, w + o * row_bytes, n, x, r, acc);                                                     \
        store_rows<TT>(acc, bias, scale, y, y_stride, o, t0, tokens);                                                  \
    }                                                                                                                  \
    KERNEL(name)

#define MATMUL_Q8(name, TT)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(int format, gptr<const uint8_t> w, unsigned long long row_bytes, aptr<const int> q,                       \
             aptr<const float> q_scale, aptr<const float> bias, float scale, aptr<float> y, int n, int rows,           \
             int tokens, int y_stride) {                                                                               \
        wait_for_previous();                                                                                           \
        int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), t0 = blockIdx.y * TT;                             \
        if (o >= rows) return;                                                                                         \
        int r[TT];                                                                                                     \
        token_rows<TT>(t0, tokens, r);                                                                                 \
        float acc[TT];                                                                                                 \
        warp_dot_q8<TT>(format, w + o * row_bytes, n, q, q_scale, r, acc);                                             \
        store_rows<TT>(acc, bias, scale, y, y_stride, o, t0, tokens);                                                  \
    }                                                                                                                  \
    KERNEL(name)

MATMUL_F32(matmul_f32_t1, 1)
MATMUL_F32(matmul_f32_t8, 8)
MATMUL_Q8(matmul_q8_t1, 1)
MATMUL_Q8(matmul_q8_t8, 8)
