// Dot products of weight rows with activation rows, by one warp or a part of it: the heart of every product here but for
// those of whole tiles (mma.cuh).
//
// A row is split among `width` lanes by its length alone; their sums are added by a butterfly.
#pragma once
#include "formats.cuh"

// Activations in 8 bits, blocks of 32 (graph/src/quant/activation.rs): value = q · scale.
// Planes: q [rows, n] int8 read as words of four, scale [rows, n / 32]. Products read them sixteen at a time, counted through
// all rows: from global memory as below, or from shared memory (common/staged.cuh).
template <class Q, class S> struct PlainQ8 {
    Q q;
    S scale;
    // Where sixteen `unit` lies, and what lies there.
    DEVICE int place(int unit) const { return unit; }
    DEVICE int4 at(int place) const { return cast<const int4>(q)[place]; }
    // The sum of the steps of the sixteen whose sum lies `ahead` of sum_place(unit).
    DEVICE static int sum_place(int unit) { return unit; }
    DEVICE float sum(int, int, int4 v) const {
        return to_float(dot4(0x01010101, v.x, dot4(0x01010101, v.y, dot4(0x01010101, v.z, dot4(0x01010101, v.w, TO_FLOAT)))));
    }
    // Those of sixteens h and h + 2 of four, whose sums begin sum_step(h) behind the four's place.
    DEVICE static int sum_step(int h) { return h; }
    DEVICE void sums(int, int, Sixteens &x) const {
        x.sum[0] = sum(0, 0, x.q[0]);
        x.sum[1] = sum(0, 0, x.q[1]);
    }
};
template <class Q, class S> DEVICE PlainQ8<Q, S> plain_q8(Q q, S scale) { return PlainQ8<Q, S>{q, scale}; }

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

// acc[t] += lane's part of the 8-bit dot product with rows r[t] of activations. Of a group: scale_x · Σ_h (scale[h] · Σ code·q −
// minimum[h] · Σ q), sums of steps exact.
template <int TT, class A>
DEVICE void lane_dot_q8(int format, gptr<const uint8_t> row, int n, const A &a, const int (&r)[TT], int lane, int width,
                        float (&acc)[TT]) {
    for (int g = lane; g < n / 32; g += width) {
        Group32 w = decode_group(format, row, n, g);
        int low[4] = {w.code[0], w.code[1], w.code[2], w.code[3]}, high[4] = {w.code[4], w.code[5], w.code[6], w.code[7]};
#pragma unroll
        for (int t = 0; t < TT; t++) {
            int unit = r[t] * (n / 16) + 2 * g, place = a.place(unit);
            int4 x0 = a.at(place), x1 = a.at(place ^ 1);
            float v = w.scale[0] * to_float(dot16(low, x0, TO_FLOAT)) + w.scale[1] * to_float(dot16(high, x1, TO_FLOAT));
            v -= w.minimum[0] * a.sum(a.sum_place(unit), 0, x0) + w.minimum[1] * a.sum(a.sum_place(unit + 1), 0, x1);
            acc[t] += v * a.scale[unit >> 1];
        }
    }
}

// acc[j] += the products of a chunk of block b + ahead of each row with its activations.
template <class F, int R, bool SAME, class A>
DEVICE void chunk_dots(const typename F::Raw (&raw)[R], const A &a, const int (&x)[R], int n, int b, int ahead,
                       const typename F::Lane &l, float (&acc)[R]) {
    Sixteens met;
#pragma unroll
    for (int j = 0; j < R; j++) {
        if (j == 0 || !SAME) met = F::x(a, x[j] * (n / 16), b, ahead, l);
        acc[j] += F::dot(raw[j], met, l);
    }
}

// acc[j] += lane's part of row j's 8-bit dot product with activation row x[j], for a format with chunks. All loads of two
// chunks of every row are under way before the first is used. SAME: the rows share x[0]. width is a multiple of 8.
template <class F, int R, bool SAME, class A>
DEVICE void lane_dot_chunks(const gptr<const uint8_t> (&row)[R], int n, const A &a, const int (&x)[R], int lane, int width,
                            float (&acc)[R]) {
    int chunks = n / 32, k = lane & 7, b = lane >> 3, step = width >> 3;
    typename F::Lane l = F::template lane<R, SAME>(a, k);
    typename F::Raw one[R], two[R];
#pragma unroll 1
    for (; 8 * (b + step) + k < chunks; b += 2 * step) {
#pragma unroll
        for (int j = 0; j < R; j++) {
            typename F::At p = F::at(row[j], n, b, k);
            one[j] = F::load(p, 0);
            two[j] = F::load(p, step);
        }
        chunk_dots<F, R, SAME>(one, a, x, n, b, 0, l, acc);
        chunk_dots<F, R, SAME>(two, a, x, n, b, step, l, acc);
    }
    if (8 * b + k < chunks) {
#pragma unroll
        for (int j = 0; j < R; j++) one[j] = F::load(F::at(row[j], n, b, k), 0);
        chunk_dots<F, R, SAME>(one, a, x, n, b, 0, l, acc);
    }
}

// The same for any block format, R rows of one matrix.
template <int R, bool SAME, class A>
DEVICE void lane_dot_rows_q8(int format, const gptr<const uint8_t> (&row)[R], int n, const A &a, const int (&x)[R], int lane,
                             int width, float (&acc)[R]) {
    if (format == FORMAT_Q4_K) {
        lane_dot_chunks<Q4_K, R, SAME>(row, n, a, x, lane, width, acc);
    } else if (format == FORMAT_Q6_K) {
        lane_dot_chunks<Q6_K, R, SAME>(row, n, a, x, lane, width, acc);
    } else if (format == FORMAT_Q5_K) {
        lane_dot_chunks<Q5_K, R, SAME>(row, n, a, x, lane, width, acc);
    } else if (format == FORMAT_Q8_0) {
        lane_dot_chunks<Q8_0, R, SAME>(row, n, a, x, lane, width, acc);
    } else if (format == FORMAT_MXFP4) {
        lane_dot_chunks<MXFP4, R, SAME>(row, n, a, x, lane, width, acc);
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
            lane_dot_q8<1>(format, mine, n, a, one, lane, width, sum);
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
        lane_dot_rows_q8<1, true>(format, rows, n, plain_q8(q, scale), x, lane, 32, sum);
        acc[0] = sum[0];
    } else {
        lane_dot_q8<TT>(format, row, n, plain_q8(q, scale), r, lane, 32, acc);
    }
#pragma unroll
    for (int t = 0; t < TT; t++) acc[t] = warp_sum(acc[t]);
}
