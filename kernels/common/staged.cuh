// What the decode step's grouped launches share: one row of activations, kept in shared memory by every block.
#pragma once
#define GROUPED_LAUNCH // without more_formats.cuh
#include "activation.cuh"
#include "dot.cuh"

// 8-bit activations in shared memory, a sixteen in 16 bytes: eight lanes read eight sixteens of 256 elements at once, and none
// of the formats' choices of them meet in a bank.
struct StagedQ8 {
    sptr<int> q;       // n / 4 words
    sptr<float> scale; // n / 32
    sptr<float> steps; // n / 16: the sums of the steps
    DEVICE int place(int unit) const { return unit ^ (((unit >> 3) & 1) * 7); }
    DEVICE int4 at(int place) const { return cast<const int4>(q)[place]; }
    // Sums lie in the order 0, 2, 1, 3 of four: chunks of nibbles have two neighbours.
    DEVICE static int sum_place(int unit) { return (unit & ~3) | ((unit & 1) << 1) | ((unit >> 1) & 1); }
    DEVICE float sum(int place, int ahead, int4) const { return (steps + place)[ahead]; }
    DEVICE static int sum_step(int h) { return 2 * h; }
    DEVICE void sums(int place, int ahead, Sixteens &x) const {
        float2 both = *cast<const float2>(steps + place + ahead);
        x.sum[0] = both.x;
        x.sum[1] = both.y;
    }
};

// Words of n elements: those of whole 256, as sixteens change places within them.
DEVICE int staged_words(int n) { return (n + 255) / 256 * 88; }

// `base` is aligned to 16.
DEVICE StagedQ8 staged_q8(sptr<float> base, int n) {
    int runs = (n + 255) / 256;
    StagedQ8 s;
    s.q = cast<int>(base);
    s.scale = base + 64 * runs;
    s.steps = base + 72 * runs;
    return s;
}

// Which forms of its row a block keeps: flags of a launch parameter.
enum Stage : int { STAGE_Q8 = 1, STAGE_F32 = 2 };

// Stores four elements of a row in 8 bits; i4 counts fours, and all lanes of a warp come together (those past the end with
// `inside` false).
DEVICE void stage_quad(float4 x, int i4, bool inside, StagedQ8 s) {
    float scale;
    int packed = quantize_quad_q8(x, scale), steps = dot4(0x01010101, packed, 0);
    steps += __shfl_xor_sync(FULL_WARP, steps, 1);
    steps += __shfl_xor_sync(FULL_WARP, steps, 2);
    if (!inside) return;
    s.q[4 * s.place(i4 >> 2) + (i4 & 3)] = packed;
    if ((i4 & 3) == 0) s.steps[s.sum_place(i4 >> 2)] = float(steps);
    if ((i4 & 7) == 0) s.scale[i4 >> 3] = scale;
}

// Quantizes x [n], n % 32 = 0, by `threads` threads, whole warps, of which this is number `thread`. A barrier must follow.
DEVICE void stage_q8_by(aptr<const float> x, int n, StagedQ8 s, int thread, int threads) {
    for (int first = 0; first < n / 4; first += threads) {
        int i4 = first + thread;
        bool inside = i4 < n / 4;
        stage_quad(inside ? cast<const float4>(x)[i4] : make_float4(0.0f, 0.0f, 0.0f, 0.0f), i4, inside, s);
    }
}

DEVICE void stage_q8(aptr<const float> x, int n, StagedQ8 s) { stage_q8_by(x, n, s, threadIdx.x, blockDim.x); }

// The widest row that a block norms, in fours a thread of 256.
constexpr int NORM_FOURS = 8;

// A norm of a whole row: w [n], or null: none. centred: LayerNorm, which takes the mean off first; b [n] or null is added at
// the end.
struct RowNorm {
    aptr<const float> w, b;
    float eps;
    int centred;
};

// What makes the row in front of its norm, of the row that is given: residual + its RMSNorm by w. w null: nothing. The blocks
// that have them write the norm to normed and the sum to sum; both may be null.
struct PostNorm {
    aptr<const float> w, residual;
    float eps;
    aptr<float> normed, sum;
};

DEVICE PostNorm no_post_norm() {
    PostNorm none;
    none.w = none.residual = aptr<const float>(nullptr);
    none.eps = 0.0f;
    none.normed = none.sum = aptr<float>(nullptr);
    return none;
}

DEVICE float four_squares(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// Replaces the row by what `post` makes of it.
DEVICE void post_normed(float4 (&v)[NORM_FOURS], const PostNorm &post, int n) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < NORM_FOURS; j++) squares += four_squares(v[j]);
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + post.eps);
#pragma unroll
    for (int j = 0; j < NORM_FOURS; j++) {
        int i4 = threadIdx.x + j * 256;
        if (i4 >= n / 4) break;
        float4 g = cast<const float4>(post.w)[i4], r = cast<const float4>(post.residual)[i4];
        v[j] = make_float4(v[j].x * inverse * g.x, v[j].y * inverse * g.y, v[j].z * inverse * g.z, v[j].w * inverse * g.w);
        if (post.normed != nullptr) cast<float4>(post.normed)[i4] = v[j];
        v[j] = make_float4(r.x + v[j].x, r.y + v[j].y, r.z + v[j].z, r.w + v[j].w);
        if (post.sum != nullptr) cast<float4>(post.sum)[i4] = v[j];
    }
}

// Keeps x [n], behind `post` and under its norm, in the forms that `stage` names: f32 at `base`, 8 bits behind it. normed [n] or
// null: the same in global memory. 256 threads, n % 4 = 0, n ≤ 8192; ends with a barrier.
DEVICE StagedQ8 stage_normed(aptr<const float> x, const PostNorm &post, const RowNorm &norm, int n, int stage,
                             sptr<float> base, aptr<float> normed) {
    aptr<const float4> source = cast<const float4>(x);
    float4 v[NORM_FOURS];
#pragma unroll
    for (int j = 0; j < NORM_FOURS; j++) {
        int i4 = threadIdx.x + j * 256;
        v[j] = i4 < n / 4 ? source[i4] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    if (post.w != nullptr) post_normed(v, post, n);
    if (norm.centred) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < NORM_FOURS; j++) sum += v[j].x + v[j].y + v[j].z + v[j].w;
        float mean = block_sum(sum) / float(n);
#pragma unroll
        for (int j = 0; j < NORM_FOURS; j++)
            if (int(threadIdx.x) + j * 256 < n / 4)
                v[j] = make_float4(v[j].x - mean, v[j].y - mean, v[j].z - mean, v[j].w - mean);
    }
    float inverse = 1.0f;
    if (norm.w != nullptr) {
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < NORM_FOURS; j++) squares += four_squares(v[j]);
        inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + norm.eps);
    }
    StagedQ8 staged = staged_q8(stage & STAGE_F32 ? base + n : base, n);
#pragma unroll
    for (int j = 0; j < NORM_FOURS; j++) {
        int i4 = threadIdx.x + j * 256;
        if (j * 256 >= n / 4) break;
        bool inside = i4 < n / 4;
        if (inside) {
            if (norm.w != nullptr) {
                float4 g = cast<const float4>(norm.w)[i4];
                v[j] = make_float4(v[j].x * inverse * g.x, v[j].y * inverse * g.y, v[j].z * inverse * g.z,
                                   v[j].w * inverse * g.w);
            }
            if (norm.b != nullptr) {
                float4 b = cast<const float4>(norm.b)[i4];
                v[j] = make_float4(v[j].x + b.x, v[j].y + b.y, v[j].z + b.z, v[j].w + b.w);
            }
            if (stage & STAGE_F32) cast<float4>(base)[i4] = v[j];
            if (normed != nullptr) cast<float4>(normed)[i4] = v[j];
        }
        if (stage & STAGE_Q8) stage_quad(v[j], i4, inside, staged);
    }
    __syncthreads();
    return staged;
}

// Lane's part of the dot product of a weight row with row r of the activations: 8-bit ones where STAGE_Q8 is set and the
// format is quantized, else f32.
template <class X>
DEVICE float staged_part(int format, gptr<const uint8_t> row, int n, X x, StagedQ8 s, int stage, int r, int lane, int width) {
    int rows[1] = {r};
    float acc[1] = {0.0f};
    if (format <= FORMAT_BF16) {
        lane_dot_float<1>(format, row, n, x, rows, lane, width, acc);
    } else if (stage & STAGE_Q8) {
        gptr<const uint8_t> one[1] = {row};
        lane_dot_rows_q8<1, true>(format, one, n, s, rows, lane, width, acc);
    } else {
        lane_dot_f32<1>(format, row, n, x, rows, lane, width, acc);
    }
    return acc[0];
}

// Two rows with the same row of activations.
template <class X>
DEVICE void staged_pair(int format0, int format1, const gptr<const uint8_t> (&row)[2], int n, X x, StagedQ8 s, int stage,
                        int lane, float (&acc)[2]) {
    acc[0] = acc[1] = 0.0f;
    if (format0 == format1 && format0 > FORMAT_BF16 && (stage & STAGE_Q8)) {
        int rows[2] = {0, 0};
        lane_dot_rows_q8<2, true>(format0, row, n, s, rows, lane, 32, acc);
        return;
    }
    acc[0] = staged_part(format0, row[0], n, x, s, stage, 0, lane, 32);
    acc[1] = staged_part(format1, row[1], n, x, s, stage, 0, lane, 32);
}

// Rows first, first + stride, … of a matrix [rows, n] times the activations, by one warp each: y = residual + (scale · product +
// bias). residual, product and bias [rows] may be null.
template <class X>
DEVICE void matmul_rows(int format, gptr<const uint8_t> w, unsigned long long row_bytes, aptr<const float> bias, float scale,
                        aptr<const float> residual, aptr<float> product, aptr<float> y, int n, int rows, X x, StagedQ8 staged,
                        int stage, int first, int stride) {
    int lane = threadIdx.x & 31;
    for (int o = first; o < rows; o += stride) {
        float v = warp_sum(staged_part(format, w + o * row_bytes, n, x, staged, stage, 0, lane, 32));
        if (lane == 0) {
            v *= scale;
            if (bias != nullptr) v += bias[o];
            if (product != nullptr) product[o] = v;
            y[o] = residual != nullptr ? residual[o] + v : v;
        }
    }
}
