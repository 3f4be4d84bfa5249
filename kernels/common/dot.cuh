// Dot products of a weight row with one or several activation rows, by one warp: the heart of every matmul here.
//
// Lane l takes groups l, l + 32, …; the partial sums are added by a butterfly. The partition depends on the row's
// length alone, so a row gives the same bits in every kernel, launch and number of tokens.
#pragma once
#include "formats.cuh"

// Activations in 8 bits, blocks of 32 (graph/src/quant/activation.rs): value = q · scale.
// Planes: q [rows, n] int8 read as words of four, scale [rows, n / 32].

// acc[t] += lane's part of Σᵢ decode(row)ᵢ · x[r[t]]ᵢ for t < TT. x: [·, n] f32.
template <int TT, class X>
DEVICE void lane_dot_f32(int format, gptr<const uint8_t> row, int n, X x, const int (&r)[TT], int lane, float (&acc)[TT]) {
    for (int g = lane; g < n / 32; g += 32) {
        Group32 w = decode_group(format, row, g);
        float part[TT];
#pragma unroll
        for (int t = 0; t < TT; t++) part[t] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float v[4];
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] = w.scale[i >> 2] * float(byte_of(w.code[i], j)) - w.minimum[i >> 2];
#pragma unroll
            for (int t = 0; t < TT; t++) {
                float4 a = cast<const float4>(x + r[t] * n)[g * 8 + i];
                part[t] += v[0] * a.x + v[1] * a.y + v[2] * a.z + v[3] * a.w;
            }
        }
#pragma unroll
        for (int t = 0; t < TT; t++) acc[t] += part[t];
    }
}

// The same for the float formats.
template <int TT, class X>
DEVICE void lane_dot_float(int format, gptr<const uint8_t> row, int n, X x, const int (&r)[TT], int lane, float (&acc)[TT]) {
    for (int i = lane; i < n; i += 32) {
        float w = decode_float(format, row, i);
#pragma unroll
        for (int t = 0; t < TT; t++) acc[t] += w * x[r[t] * n + i];
    }
}

// Σ over one group: scale_x · Σ_h (scale[h] · Σ code·q − minimum[h] · Σ q), integer sums exact.
DEVICE float group_dot_q8(const Group32 &w, const int (&q)[8], float scale_x) {
    int dot[2] = {0, 0}, sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        dot[i >> 2] = dot4(w.code[i], q[i], dot[i >> 2]);
        sum[i >> 2] = dot4(0x01010101, q[i], sum[i >> 2]);
    }
    float v = w.scale[0] * float(dot[0]) + w.scale[1] * float(dot[1]);
    v -= w.minimum[0] * float(sum[0]) + w.minimum[1] * float(sum[1]);
    return v * scale_x;
}

// acc[t] += lane's part of the 8-bit dot product. q: words, [·, n / 4]; scale: [·, n / 32].
template <int TT, class Q, class S>
DEVICE void lane_dot_q8(int format, gptr<const uint8_t> row, int n, Q q, S scale, const int (&r)[TT], int lane, float (&acc)[TT]) {
    for (int g = lane; g < n / 32; g += 32) {
        Group32 w = decode_group(format, row, g);
#pragma unroll
        for (int t = 0; t < TT; t++) {
            auto words = cast<const int4>(q + r[t] * (n / 4));
            int4 a = words[2 * g], b = words[2 * g + 1];
            int qs[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            acc[t] += group_dot_q8(w, qs, scale[r[t] * (n / 32) + g]);
        }
    }
}

// Dot product of one weight row of any format with rows r[0 … TT) of f32 activations; every lane gets the sums.
template <int TT, class X>
DEVICE void warp_dot_f32(int format, gptr<const uint8_t> row, int n, X x, const int (&r)[TT], float (&acc)[TT]) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = 0.0f;
    if (format <= FORMAT_BF16) lane_dot_float<TT>(format, row, n, x, r, lane, acc);
    else lane_dot_f32<TT>(format, row, n, x, r, lane, acc);
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = warp_sum(acc[t]);
}

// The same with 8-bit activations, for the thirteen block formats.
template <int TT, class Q, class S>
DEVICE void warp_dot_q8(int format, gptr<const uint8_t> row, int n, Q q, S scale, const int (&r)[TT], float (&acc)[TT]) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = 0.0f;
    lane_dot_q8<TT>(format, row, n, q, scale, r, lane, acc);
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = warp_sum(acc[t]);
}
