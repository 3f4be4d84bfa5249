// What the decode step's grouped launches share: one row of activations, kept in shared memory by every block.
#pragma once
#include "activation.cuh"
#include "dot.cuh"

// 8-bit activations in shared memory.
struct StagedQ8 {
    sptr<int> q;       // n / 4 words
    sptr<float> scale; // n / 32
};

// Bytes: n + n / 8. `base` is aligned to 16.
DEVICE StagedQ8 staged_q8(sptr<float> base, int n) {
    StagedQ8 s;
    s.q = cast<int>(base);
    s.scale = base + n / 4;
    return s;
}

// Quantizes x [n], n % 32 = 0, one warp a block of 32. A barrier must follow.
template <class X> DEVICE void stage_q8(X x, int n, StagedQ8 s) {
    int lane = threadIdx.x & 31;
    for (int b = threadIdx.x >> 5; b < n / 32; b += blockDim.x >> 5) {
        float scale;
        int v = quantize_lane_q8(x[b * 32 + lane], scale);
        cast<int8_t>(s.q)[b * 32 + lane] = int8_t(v);
        if (lane == 0) s.scale[b] = scale;
    }
}

// Dot product of a weight row with row r of the activations: 8-bit ones where `q8` is set and the format is quantized,
// else f32. Every lane gets it.
template <class X>
DEVICE float staged_dot(int format, gptr<const uint8_t> row, int n, X x, StagedQ8 s, int q8, int r) {
    int rows[1] = {r};
    float acc[1];
    if (q8 && format > FORMAT_BF16) warp_dot_q8<1>(format, row, n, s.q, s.scale, rows, acc);
    else warp_dot_f32<1>(format, row, n, x, rows, acc);
    return acc[0];
}
