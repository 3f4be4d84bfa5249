// Attention of up to 8 query heads that share one KV head, by one warp on the matrix units: tiles of 16 cached positions of an
// f16 cache, heads of D = 64 or 128 for keys and values, online softmax.
//
// Lane l is g = l / 4, t = l mod 4. The sixteen rows of a product are 8 heads twice: an operand in f32 is split into a half and
// the half of what is left, so that products are as good as f32's (about 22 bits), in one pass. The order of a head's elements
// within a product is free, so each lane loads 16 bytes of a cached row and has its part of two products; the scores'
// registers are the probabilities' operand as they are.
#pragma once
#include "kv.cuh"
#include "mma.cuh"

constexpr int TILE_POSITIONS = 16;

template <int D> struct WarpAttend {
    uint32_t q[D / 16][4];  // operand of the scores
    float unscale;          // of head g: undoes the power of two that q was scaled by
    float top;              // of head g, so far
    float total;            // the lane's part of Σ exp
    float out[D / 64][8][4];
};

// Probabilities are scaled by this before they are split, so that small ones keep their bits.
#define PROBABILITY_SCALE 256.0f

// Two floats as halves, and what the halves leave of them as halves.
DEVICE void split_pair(float a, float b, uint32_t &high, uint32_t &low) {
    uint16_t ha = float_to_half(a), hb = float_to_half(b);
    high = uint32_t(ha) | (uint32_t(hb) << 16);
    low = uint32_t(float_to_half(a - half_to_float(ha))) | (uint32_t(float_to_half(b - half_to_float(hb))) << 16);
}

// Queries q [heads, D] from shared or global memory; heads beyond `heads` are zero.
template <int D, class Q> DEVICE void begin(WarpAttend<D> &w, Q q, int heads) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    float v[D / 32][8], amax = 0.0f;
#pragma unroll
    for (int j = 0; j < D / 32; j++) {
        float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f), b = a;
        if (g < heads) {
            a = cast<const float4>(q)[(g * D + 32 * j + 8 * t) / 4];
            b = cast<const float4>(q)[(g * D + 32 * j + 8 * t) / 4 + 1];
        }
        v[j][0] = a.x, v[j][1] = a.y, v[j][2] = a.z, v[j][3] = a.w, v[j][4] = b.x, v[j][5] = b.y, v[j][6] = b.z, v[j][7] = b.w;
#pragma unroll
        for (int i = 0; i < 8; i++) amax = fmaxf(amax, fabsf(v[j][i]));
    }
    amax = fmaxf(amax, __shfl_xor_sync(FULL_WARP, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(FULL_WARP, amax, 2));
    // 2^(8 − exponent of the largest), so that the largest lies in 256 … 512.
    uint32_t exponent = __float_as_uint(amax) >> 23;
    bool usual = exponent > 20 && exponent < 240;
    float scale = usual ? __uint_as_float((262u - exponent) << 23) : 1.0f;
    w.unscale = usual ? __uint_as_float((exponent - 8u) << 23) : 1.0f;
#pragma unroll
    for (int j = 0; j < D / 32; j++)
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                split_pair(v[j][4 * s + 2 * k] * scale, v[j][4 * s + 2 * k + 1] * scale, w.q[2 * j + s][2 * k],
                           w.q[2 * j + s][2 * k + 1]);
    w.top = -infinity();
    w.total = 0.0f;
#pragma unroll
    for (int c = 0; c < D / 64; c++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int k = 0; k < 4; k++) w.out[c][i][k] = 0.0f;
}

// Positions base … base + 15 that are below `to`, at least one. keys, values: the KV head's first element of row 0; `stride`
// elements from one row to the next; `rows` says where positions lie.
template <int D>
DEVICE void add_tile(WarpAttend<D> &w, aptr<const uint16_t> keys, aptr<const uint16_t> values, long long stride,
                     const CacheRows &rows, int base, int to, float scale, float soft_cap) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    uint4 k[2][D / 32], v[D / 64][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        int row = row_of(rows, min(base + 8 * n + g, to - 1));
#pragma unroll
        for (int j = 0; j < D / 32; j++) k[n][j] = *cast<const uint4>(keys + (row * stride + 32 * j + 8 * t));
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int row = row_of(rows, min(base + 2 * t + (r & 1) + 8 * (r >> 1), to - 1));
#pragma unroll
        for (int c = 0; c < D / 64; c++) v[c][r] = *cast<const uint4>(values + (row * stride + 64 * c + 8 * g));
    }
    float score[2][2], top = w.top;
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
            mma_f16(c, w.q[2 * j], k[n][j].x, k[n][j].y);
            mma_f16(c, w.q[2 * j + 1], k[n][j].z, k[n][j].w);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float s = (c[i] + c[2 + i]) * w.unscale * scale;
            if (soft_cap > 0.0f) s = soft_cap * tanhf(s / soft_cap);
            score[n][i] = base + 8 * n + 2 * t + i < to ? s : -infinity();
            top = fmaxf(top, score[n][i]);
        }
    }
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
    float factor = w.top == -infinity() ? 0.0f : expf(w.top - top);
    w.top = top;
    w.total *= factor;
#pragma unroll
    for (int c = 0; c < D / 64; c++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int m = 0; m < 4; m++) w.out[c][i][m] *= factor;
    uint32_t p[4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
        float a = score[n][0] == -infinity() ? 0.0f : PROBABILITY_SCALE * expf(score[n][0] - top);
        float b = score[n][1] == -infinity() ? 0.0f : PROBABILITY_SCALE * expf(score[n][1] - top);
        w.total += a + b;
        split_pair(a, b, p[2 * n], p[2 * n + 1]);
    }
#pragma unroll
    for (int c = 0; c < D / 64; c++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t pick = i & 1 ? 0x7632u : 0x5410u;
            uint32_t b0 = __byte_perm(word_of(v[c][0], i >> 1), word_of(v[c][1], i >> 1), pick);
            uint32_t b1 = __byte_perm(word_of(v[c][2], i >> 1), word_of(v[c][3], i >> 1), pick);
            mma_f16(w.out[c][i], p, b0, b1);
        }
}

// Σ exp of head g, in every lane of its four; and its sums: lane (g, t) has channels 64c + 16t … 64c + 16t + 15.
template <int D> DEVICE float finish(WarpAttend<D> &w, float (&sums)[D / 64][16]) {
    float total = w.total + __shfl_xor_sync(FULL_WARP, w.total, 1);
    total += __shfl_xor_sync(FULL_WARP, total, 2);
#pragma unroll
    for (int c = 0; c < D / 64; c++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sums[c][i] = (w.out[c][i][0] + w.out[c][i][2]) * (1.0f / PROBABILITY_SCALE);
            sums[c][8 + i] = (w.out[c][i][1] + w.out[c][i][3]) * (1.0f / PROBABILITY_SCALE);
        }
    return total * (1.0f / PROBABILITY_SCALE);
}

// Sixteen floats to an address aligned to 16.
template <class Y> DEVICE void store16(Y y, const float (&v)[16], float factor) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        cast<float4>(y)[i] = make_float4(v[4 * i] * factor, v[4 * i + 1] * factor, v[4 * i + 2] * factor, v[4 * i + 3] * factor);
}
