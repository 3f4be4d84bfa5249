// Attention of up to HEADS query heads that share one KV head over a range of cached positions, by one block:
// softmax(scale · q·kᵀ) · v with a running maximum (the online softmax), tile after tile.
//
// Threads take one cached position each for the scores, then one value channel each for the sums, so that every sum has
// one fixed order. Shared memory (floats): q [HEADS, d], scores [HEADS, TILE], state [3, HEADS].
#pragma once
#include "kv.cuh"

constexpr int ATTEND_THREADS = 128;
constexpr int ATTEND_TILE = ATTEND_THREADS;
constexpr int ATTEND_HEADS = 8;
constexpr int ATTEND_CHANNELS = 4; // value channels a thread, so value_head_dim ≤ 512

struct Attend {
    int heads;          // query heads here, ≤ ATTEND_HEADS
    int d, dv;          // widths of a key and a value head; multiples of 4
    int kv_head;        // which KV head
    int kv_heads;       // G
    float scale;
    float soft_cap;     // 0: none
    int rows;           // of the caches: position p is in row p modulo so many
    bool value_in_key = false; // a value is the first dv elements of its key
    aptr<const float> mask = aptr<const float>(nullptr); // [positions], 0 at those that are not seen, or null
};

struct AttendShared {
    sptr<float> q, scores, top, total, factor;
};

// The parts of one shared array of 8·(d + 128 + 3) floats.
DEVICE AttendShared attend_shared(sptr<float> base, int d) {
    AttendShared s;
    s.q = base;
    s.scores = base + ATTEND_HEADS * d;
    s.top = s.scores + ATTEND_HEADS * ATTEND_TILE;
    s.total = s.top + ATTEND_HEADS;
    s.factor = s.total + ATTEND_HEADS;
    return s;
}

DEVICE float capped(float score, float soft_cap) {
    return soft_cap > 0.0f ? soft_cap * tanhf(score / soft_cap) : score;
}

// q·k for the block's heads at one row of the cache; out[h].
template <int KV>
DEVICE void key_dots(const Attend &a, sptr<const float> q, aptr<const uint8_t> keys, int row,
                     float (&out)[ATTEND_HEADS]) {
    long long at = (static_cast<long long>(row) * a.kv_heads + a.kv_head) * a.d;
#pragma unroll
    for (int h = 0; h < ATTEND_HEADS; h++) out[h] = 0.0f;
    for (int i = 0; i < a.d; i += 4) {
        float4 k = kv_load4<KV>(keys, at + i);
#pragma unroll
        for (int h = 0; h < ATTEND_HEADS; h++)
            if (h < a.heads) {
                float4 b = cast<const float4>(q + h * a.d)[i >> 2];
                out[h] += k.x * b.x + k.y * b.y + k.z * b.z + k.w * b.w;
            }
    }
}

// Positions [from, to): leaves each head's maximum in s.top, Σ exp in s.total, and the unscaled sums in acc[j][h] for
// channel threadIdx.x + j · threads. s.q holds the queries; begins and ends with a barrier. NaN scores stay NaN.
template <int KV>
DEVICE void attend_range(const Attend &a, const AttendShared &s, aptr<const uint8_t> keys, aptr<const uint8_t> values,
                         int from, int to, float (&acc)[ATTEND_CHANNELS][ATTEND_HEADS]) {
    int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    CacheRows at_rows = rows_from(from, a.rows);
#pragma unroll
    for (int j = 0; j < ATTEND_CHANNELS; j++)
#pragma unroll
        for (int h = 0; h < ATTEND_HEADS; h++) acc[j][h] = 0.0f;
    if (tid < a.heads) {
        s.top[tid] = -infinity();
        s.total[tid] = 0.0f;
    }
    for (int base = from; base < to; base += ATTEND_TILE) {
        int count = to - base < ATTEND_TILE ? to - base : ATTEND_TILE;
        __syncthreads();
        if (tid < count) {
            bool seen = a.mask == nullptr || a.mask[base + tid] != 0.0f;
            float dots[ATTEND_HEADS];
            key_dots<KV>(a, s.q, keys, row_of(at_rows, base + tid), dots);
#pragma unroll
            for (int h = 0; h < ATTEND_HEADS; h++)
                if (h < a.heads)
                    s.scores[h * ATTEND_TILE + tid] = seen ? capped(dots[h] * a.scale, a.soft_cap) : -infinity();
        }
        __syncthreads();
        for (int h = warp; h < a.heads; h += ATTEND_THREADS / 32) {
            sptr<float> row = s.scores + h * ATTEND_TILE;
            float m = -infinity(), sum = 0.0f;
            for (int i = lane; i < count; i += 32) m = fmaxf(m, row[i]);
            float old = s.top[h];
            m = fmaxf(warp_max(m), old);
            for (int i = lane; i < ATTEND_TILE; i += 32) {
                // What is not seen has no share, not even where nothing before it was seen.
                float p = i < count && row[i] != -infinity() ? expf(row[i] - m) : 0.0f;
                row[i] = p;
                sum += p;
            }
            sum = warp_sum(sum);
            __syncwarp();
            if (lane == 0) {
                float factor = old == -infinity() ? 0.0f : expf(old - m);
                s.factor[h] = factor;
                s.top[h] = m;
                s.total[h] = s.total[h] * factor + sum;
            }
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < ATTEND_CHANNELS; j++) {
            int c = tid + j * ATTEND_THREADS;
            if (c >= a.dv) break;
            float part[ATTEND_HEADS] = {};
            long long stride = a.value_in_key ? a.d : a.dv;
            long long at = a.kv_head * stride + c, step = a.kv_heads * stride;
            // Rows follow each other up to the last one, and go on at the first.
            int row = row_of(at_rows, base), turn = a.rows - row;
            for (int i = 0; i < count; i++) {
                float v = kv_load<KV>(values, at + (i < turn ? row + i : i - turn) * step);
#pragma unroll
                for (int h = 0; h < ATTEND_HEADS; h++)
                    if (h < a.heads) part[h] += s.scores[h * ATTEND_TILE + i] * v;
            }
#pragma unroll
            for (int h = 0; h < ATTEND_HEADS; h++)
                if (h < a.heads) acc[j][h] = acc[j][h] * s.factor[h] + part[h];
        }
    }
    __syncthreads();
}

// How the cached positions of one query are split among blocks: by their number alone.
struct Splits {
    int count, tokens;
};
DEVICE Splits splits_of(int positions, int max_splits) {
    Splits s;
    int each = (positions + max_splits - 1) / max_splits;
    s.tokens = (each + ATTEND_TILE - 1) / ATTEND_TILE * ATTEND_TILE;
    if (s.tokens < ATTEND_TILE) s.tokens = ATTEND_TILE;
    s.count = (positions + s.tokens - 1) / s.tokens;
    return s;
}

// All splits' sums of the block's heads, added in the order of the splits: each split's factor first, then every thread takes
// channels. count ≤ ATTEND_TILE.
DEVICE void merge_splits(const Attend &a, const AttendShared &s, int count, aptr<const float> sinks,
                         aptr<const float> partial, aptr<const float> partial_state, aptr<float> y, int row0, int rows) {
    int tid = threadIdx.x, lane = tid & 31;
    __syncthreads();
    for (int h = tid >> 5; h < a.heads; h += ATTEND_THREADS / 32) {
        float top = sinks != nullptr ? sinks[h] : -infinity(), total = 0.0f;
        for (int p = lane; p < count; p += 32) top = fmaxf(top, partial_state[(p * rows + row0 + h) * 2]);
        top = warp_max(top);
        for (int p = lane; p < count; p += 32) {
            float f = expf(partial_state[(p * rows + row0 + h) * 2] - top);
            s.scores[h * ATTEND_TILE + p] = f;
            total += partial_state[(p * rows + row0 + h) * 2 + 1] * f;
        }
        total = warp_sum(total);
        if (sinks != nullptr) total += expf(sinks[h] - top);
        if (lane == 0) s.total[h] = total;
    }
    __syncthreads();
    int fours = a.dv / 4;
    for (int u = tid; u < a.heads * fours; u += ATTEND_THREADS) {
        int h = u / fours, c = u % fours;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (int p = 0; p < count; p++) {
            float4 v = cast<const float4>(partial + static_cast<long long>(p * rows + row0 + h) * a.dv)[c];
            float f = s.scores[h * ATTEND_TILE + p];
            sum = make_float4(sum.x + v.x * f, sum.y + v.y * f, sum.z + v.z * f, sum.w + v.w * f);
        }
        float total = s.total[h];
        cast<float4>(y + static_cast<long long>(row0 + h) * a.dv)[c] =
            make_float4(sum.x / total, sum.y / total, sum.z / total, sum.w / total);
    }
}

// The split's share of one query's heads: alone it is divided and stored; otherwise the partial sums go to `partial`
// [splits, rows, dv] and (maximum, total) to `partial_state` [splits, rows, 2], and the block that arrives last adds them in
// the order of the splits. row0: this chunk's first (token, head) row of y [rows, dv]; rows: T · H. sinks [heads here] or
// null. Ends with a barrier; returns whether this block wrote y.
DEVICE bool finish_splits(const Attend &a, const AttendShared &s, const float (&acc)[ATTEND_CHANNELS][ATTEND_HEADS],
                          Splits splits, int split, aptr<const float> sinks, aptr<float> partial,
                          aptr<float> partial_state, aptr<int> arrived, aptr<float> y, int row0, int rows) {
    SHARED(int, is_last, 1);
    int tid = threadIdx.x;
    if (splits.count > 1) {
#pragma unroll
        for (int j = 0; j < ATTEND_CHANNELS; j++) {
            int c = tid + j * ATTEND_THREADS;
            if (c >= a.dv) break;
#pragma unroll
            for (int h = 0; h < ATTEND_HEADS; h++)
                if (h < a.heads) partial[(static_cast<long long>(split) * rows + row0 + h) * a.dv + c] = acc[j][h];
        }
        if (tid < a.heads) {
            partial_state[(split * rows + row0 + tid) * 2] = s.top[tid];
            partial_state[(split * rows + row0 + tid) * 2 + 1] = s.total[tid];
        }
        __threadfence();
        __syncthreads();
        if (tid == 0) {
            int before = atomicAdd(&arrived[0], 1);
            is_last[0] = before == splits.count - 1;
            if (is_last[0]) arrived[0] = 0; // ready for the next launch
        }
        __syncthreads();
        if (!is_last[0]) return false;
        __threadfence();
    }
    if (splits.count > 1) {
        merge_splits(a, s, splits.count, sinks, partial, partial_state, y, row0, rows);
    } else {
#pragma unroll
        for (int j = 0; j < ATTEND_CHANNELS; j++) {
            int c = tid + j * ATTEND_THREADS;
            if (c >= a.dv) break;
#pragma unroll
            for (int h = 0; h < ATTEND_HEADS; h++) {
                if (h >= a.heads) break;
                float factor = 1.0f, total = s.total[h];
                if (sinks != nullptr) {
                    float bound = fmaxf(s.top[h], sinks[h]);
                    factor = expf(s.top[h] - bound);
                    total = total * factor + expf(sinks[h] - bound);
                }
                y[static_cast<long long>(row0 + h) * a.dv + c] = acc[j][h] * factor / total;
            }
        }
    }
    __syncthreads();
    return true;
}
