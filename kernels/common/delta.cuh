// The gated delta rule by blocks that have 32 columns of a head's S [dk, dv] in their registers: a lane a column, a warp DELTA_ROWS
// rows. The sums over rows of a token are taken of S as it was, so that one exchange does for both:
// out_j = Σ q̂ᵢgᵢ·Sᵢⱼ + (q̂·k̂)·δⱼ.
#pragma once
#include "prelude.cuh"

constexpr int DELTA_ROWS = 16;

// What a block keeps of a token: q̂, k̂ and the decay g by rows of S, zero behind the last, then q̂·k̂ and β.
struct DeltaToken {
    sptr<float> q, k, decay, dot, beta;
};
DEVICE DeltaToken delta_token(sptr<float> base, int rows, int token) {
    DeltaToken s;
    s.q = base + token * (3 * rows + 4);
    s.k = s.q + rows;
    s.decay = s.k + rows;
    s.dot = s.decay + rows;
    s.beta = s.dot + 1;
    return s;
}

// One warp, a token: q, k [dk]; decay(i): that of row i.
template <class Decay>
DEVICE void stage_delta_token(DeltaToken s, aptr<const float> q, aptr<const float> k, const Decay &decay, float beta, int dk,
                              int rows, float eps, float scale) {
    int lane = threadIdx.x & 31;
    float qq = 0.0f, kk = 0.0f, qk = 0.0f;
    for (int i = lane; i < dk; i += 32) {
        qq += q[i] * q[i];
        kk += k[i] * k[i];
        qk += q[i] * k[i];
    }
    float of_q = scale / sqrtf(warp_sum(qq) + eps), of_k = 1.0f / sqrtf(warp_sum(kk) + eps);
    qk = warp_sum(qk);
    for (int i = lane; i < rows; i += 32) {
        bool inside = i < dk;
        s.q[i] = inside ? q[i] * of_q : 0.0f;
        s.k[i] = inside ? k[i] * of_k : 0.0f;
        s.decay[i] = inside ? decay(i) : 0.0f;
    }
    if (lane == 0) {
        s.dot[0] = qk * of_q * of_k;
        s.beta[0] = beta;
    }
}

// A block's 32 columns under one token; s: a warp's rows of a lane's column, v: its value, sums [64 · warps]. Every warp gets the
// output, behind a barrier.
DEVICE float delta_advance(float (&s)[DELTA_ROWS], const DeltaToken &token, sptr<float> sums, float v, bool mine) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, first = warp * DELTA_ROWS;
    float by_k = 0.0f, by_q = 0.0f;
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++) {
        s[i] *= token.decay[first + i];
        by_k += token.k[first + i] * s[i];
        by_q += token.q[first + i] * s[i];
    }
    sums[warp * 64 + lane] = by_k;
    sums[warp * 64 + 32 + lane] = by_q;
    __syncthreads();
    float read = 0.0f, out = 0.0f;
    for (int w = 0; w < warps; w++) {
        read += sums[w * 64 + lane];
        out += sums[w * 64 + 32 + lane];
    }
    float delta = mine ? token.beta[0] * (v - read) : 0.0f;
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++) s[i] += token.k[first + i] * delta;
    return out + token.dot[0] * delta;
}
