// Dot products of weight rows with activation rows, by one warp or a part of it: the heart of every product here but for
// those of whole tiles (mma.cuh).
//
// A row is split among `width` lanes by its length alone; their sums are added by a butterfly.
#pragma once
#include "formats.cuh"

// Activations in 8 bits, blocks of 32 (graph/src/quant/activation.rs): value = q · scale.
// Planes: q [rows, n] int8 read as words of four, scale [rows, n / 32].

// acc[t] += lane's part of Σᵢ decode(row)ᵢ · x[r[t]]ᵢ for t < TT. x: [·, n] f32.
template <int TT, class X>
DEVICE void lane_dot_f32(int format, gptr<const uint8_t> row, int n, X x, const int (&r)[TT], int lane, int width,
                         float (&acc)[TT]) {
    for (int g = lane; g < n / 32; g += width) {
        Group32 w = decode_group(format, row, n, g);
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

// Eight elements of a float row from 8g on.
DEVICE void load_floats8(int format, gptr<const uint8_t> row, int g, float (&v)[8]) {
    if (format == FORMAT_F32) {
        float4 a = cast<const float4>(row)[2 * g], b = cast<const float4>(row)[2 * g + 1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        return;
    }
    uint4 words = cast<const uint4>(row)[g];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t w = word_of(words, i);
        v[2 * i] = format == FORMAT_F16 ? half_to_float(uint16_t(w)) : bf16_to_float(uint16_t(w));
        v[2 * i + 1] = format == FORMAT_F16 ? half_to_float(uint16_t(w >> 16)) : bf16_to_float(uint16_t(w >> 16));
    }
}

// The same for the float formats: eight elements a lane where rows are whole eights, two loads in flight.
template <int TT, class X>
DEVICE void lane_dot_float(int format, gptr<const uint8_t> row, int n, X x, const int (&r)[TT], int lane, int width,
                           float (&acc)[TT]) {
    if (n % 8 != 0) {
        for (int i = lane; i < n; i += width) {
            float w = decode_float(format, row, i);
#pragma unroll
            for (int t = 0; t < TT; t++) acc[t] += w * x[r[t] * n + i];
        }
        return;
    }
    for (int g = lane; g < n / 8; g += 2 * width) {
        float w[2][8];
        bool both = g + width < n / 8;
        load_floats8(format, row, g, w[0]);
        load_floats8(format, row, both ? g + width : g, w[1]);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            if (u == 1 && !both) break;
#pragma unroll
            for (int t = 0; t < TT; t++) {
                auto a = cast<const float4>(x + r[t] * n);
                float4 a0 = a[2 * (g + u * width)], a1 = a[2 * (g + u * width) + 1];
                float part = w[u][0] * a0.x + w[u][1] * a0.y + w[u][2] * a0.z + w[u][3] * a0.w;
                part += w[u][4] * a1.x + w[u][5] * a1.y + w[u][6] * a1.z + w[u][7] * a1.w;
                acc[t] += part;
            }
        }
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
DEVICE void lane_dot_q8(int format, gptr<const uint8_t> row, int n, Q q, S scale, const int (&r)[TT], int lane, int width,
                        float (&acc)[TT]) {
    for (int g = lane; g < n / 32; g += width) {
        Group32 w = decode_group(format, row, n, g);
#pragma unroll
        for (int t = 0; t < TT; t++) {
            auto words = cast<const int4>(q + r[t] * (n / 4));
            int4 a = words[2 * g], b = words[2 * g + 1];
            int qs[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            acc[t] += group_dot_q8(w, qs, scale[r[t] * (n / 32) + g]);
        }
    }
}

// Sixteen elements: scale_x · (scale · Σ code·q − minimum · Σ q).
template <bool MINIMA> DEVICE float half_dot_q8(const Chunk &w, int h, int4 q, float scale_x) {
    int dot = dot4(w.code[4 * h], q.x, dot4(w.code[4 * h + 1], q.y, dot4(w.code[4 * h + 2], q.z, dot4(w.code[4 * h + 3], q.w, 0))));
    float v = w.scale[h] * float(dot);
    if (MINIMA) {
        int sum = dot4(0x01010101, q.x, dot4(0x01010101, q.y, dot4(0x01010101, q.z, dot4(0x01010101, q.w, 0))));
        v -= w.minimum[h] * float(sum);
    }
    return v * scale_x;
}

// acc[k] += lane's part of row k's 8-bit dot product with activation row x[k], for a format with chunks. All loads of two
// chunks of every row are under way before the first is used. SAME: the rows share x[0].
template <class F, int R, bool SAME, class Q, class S>
DEVICE void lane_dot_chunks(const gptr<const uint8_t> (&row)[R], int n, Q q, S scale, const int (&x)[R], int lane, int width,
                            float (&acc)[R]) {
    int chunks = n / 32;
    for (int c = lane; c < chunks; c += 2 * width) {
        bool both = c + width < chunks;
        typename F::Raw raw[R][2];
#pragma unroll
        for (int k = 0; k < R; k++) {
            raw[k][0] = F::load(row[k], n, c);
            raw[k][1] = F::load(row[k], n, both ? c + width : c);
        }
#pragma unroll
        for (int u = 0; u < 2; u++) {
            if (u == 1 && !both) break;
            int4 a[2];
            float s[2];
#pragma unroll
            for (int k = 0; k < R; k++) {
                Chunk w = F::open(raw[k][u], row[k], c + u * width);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    if (k == 0 || !SAME) {
                        a[h] = cast<const int4>(q + x[k] * (n / 4))[w.unit[h]];
                        s[h] = scale[x[k] * (n / 32) + (w.unit[h] >> 1)];
                    }
                    acc[k] += half_dot_q8<F::MINIMA>(w, h, a[h], s[h]);
                }
            }
        }
    }
}

// The same for any block format, R rows of one matrix.
template <int R, bool SAME, class Q, class S>
DEVICE void lane_dot_rows_q8(int format, const gptr<const uint8_t> (&row)[R], int n, Q q, S scale, const int (&x)[R], int lane,
                             int width, float (&acc)[R]) {
    if (format == FORMAT_Q4_K) {
        lane_dot_chunks<Q4_K, R, SAME>(row, n, q, scale, x, lane, width, acc);
    } else if (format == FORMAT_Q6_K) {
        lane_dot_chunks<Q6_K, R, SAME>(row, n, q, scale, x, lane, width, acc);
    } else if (format == FORMAT_Q5_K) {
        lane_dot_chunks<Q5_K, R, SAME>(row, n, q, scale, x, lane, width, acc);
    } else if (format == FORMAT_Q8_0) {
        lane_dot_chunks<Q8_0, R, SAME>(row, n, q, scale, x, lane, width, acc);
    } else if (format == FORMAT_MXFP4) {
        lane_dot_chunks<MXFP4, R, SAME>(row, n, q, scale, x, lane, width, acc);
    } else {
        // One copy of the code for all rows; arrays are indexed by constants alone, so that they stay in registers.
#pragma unroll 1
        for (int k = 0; k < R; k++) {
            gptr<const uint8_t> mine = row[0];
            int one[1] = {x[0]};
            float sum[1] = {0.0f};
#pragma unroll
            for (int j = 1; j < R; j++) {
                mine = k == j ? row[j] : mine;
                one[0] = k == j ? x[j] : one[0];
            }
            lane_dot_q8<1>(format, mine, n, q, scale, one, lane, width, sum);
#pragma unroll
            for (int j = 0; j < R; j++)
                if (k == j) acc[j] += sum[0];
        }
    }
}

// Dot product of one weight row of any format with rows r[0 … TT) of f32 activations; every lane gets the sums.
template <int TT, class X>
DEVICE void warp_dot_f32(int format, gptr<const uint8_t> row, int n, X x, const int (&r)[TT], float (&acc)[TT]) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = 0.0f;
    if (format <= FORMAT_BF16) lane_dot_float<TT>(format, row, n, x, r, lane, 32, acc);
    else lane_dot_f32<TT>(format, row, n, x, r, lane, 32, acc);
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = warp_sum(acc[t]);
}

// The same with 8-bit activations, for the block formats.
template <int TT, class Q, class S>
DEVICE void warp_dot_q8(int format, gptr<const uint8_t> row, int n, Q q, S scale, const int (&r)[TT], float (&acc)[TT]) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = 0.0f;
    if (TT == 1) {
        gptr<const uint8_t> rows[1] = {row};
        int x[1] = {r[0]};
        float sum[1] = {0.0f};
        lane_dot_rows_q8<1, true>(format, rows, n, q, scale, x, lane, 32, sum);
        acc[0] = sum[0];
    } else {
        lane_dot_q8<TT>(format, row, n, q, scale, r, lane, 32, acc);
    }
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = warp_sum(acc[t]);
}
