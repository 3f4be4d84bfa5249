// Phase 2 of a decode layer, one token: per-head norm of q and k, RoPE, KvWrite, Attention.
//
// Blocks as in attention.cu. Each norms and turns its own query heads; the block that holds the last cached positions
// also makes the current token's key and value, stores them rounded as the cache is, and reads them back from there.
// (Blocks of the same KV head that do so at once store the same bytes.)
#include "common/attend.cuh"
#include "common/attend_tiles.cuh"
#include "common/rotate.cuh"
#include "common/visible.cuh"

// How heads are placed. dims 0: they are not rotated. norm_last: the norm stands behind the rotation. whole_rows: it is over
// all heads at once.
struct Turn {
    aptr<const float> table;
    int dims, interleaved, table_rows, position, norm_last, whole_rows;
};

// What a norm divides x [n] by; by one warp.
DEVICE float norm_factor(aptr<const float> x, int n, float eps) {
    float squares = 0.0f;
    for (int i = threadIdx.x & 31; i < n; i += 32) squares += x[i] * x[i];
    return 1.0f / sqrtf(warp_sum(squares) / float(n) + eps);
}

// One head by one warp: x [d] → normed (norm null: a copy), then turned, or the other way round. row_factor: of a whole row's
// norm, whose weight has a number for each element of the row; norm is then the head's part of it. Taps may be null.
DEVICE void norm_turn(aptr<const float> x, aptr<const float> norm, float eps, float row_factor, const Turn &turn, int d,
                      sptr<float> normed, sptr<float> turned, aptr<float> normed_tap, aptr<float> turned_tap) {
    int lane = threadIdx.x & 31;
    if (turn.norm_last) {
        float squares = 0.0f;
        for (int i = lane; i < d; i += 32) {
            float v = rotated(x, i, turn.position, turn.table, turn.dims, turn.interleaved, turn.table_rows);
            normed[i] = v;
            squares += v * v;
            if (turned_tap != nullptr) turned_tap[i] = v;
        }
        float inverse = 1.0f / sqrtf(warp_sum(squares) / float(d) + eps);
        for (int i = lane; i < d; i += 32) {
            float v = normed[i] * inverse * (norm != nullptr ? norm[i] : 1.0f);
            turned[i] = v;
            if (normed_tap != nullptr) normed_tap[i] = v;
        }
        __syncwarp();
        return;
    }
    float inverse = row_factor;
    if (norm != nullptr && !turn.whole_rows) inverse = norm_factor(x, d, eps);
    for (int i = lane; i < d; i += 32) {
        float v = norm != nullptr ? x[i] * inverse * norm[i] : x[i];
        normed[i] = v;
        if (normed_tap != nullptr) normed_tap[i] = v;
    }
    __syncwarp();
    for (int i = lane; i < d; i += 32) {
        float v = rotated(normed, i, turn.position, turn.table, turn.dims, turn.interleaved, turn.table_rows);
        turned[i] = v;
        if (turned_tap != nullptr) turned_tap[i] = v;
    }
    __syncwarp();
}

// The current token's value under its norm, by one warp; w null: 1.
struct ValueNorm {
    int on;
    aptr<const float> w;
    float eps;
    aptr<float> tap;
};
DEVICE void norm_value(const ValueNorm &norm, aptr<const float> v, sptr<float> y, int n, int at, bool keeps) {
    float inverse = norm_factor(v + at, n, norm.eps);
    for (int i = threadIdx.x & 31; i < n; i += 32) {
        float x = v[at + i] * inverse;
        if (norm.w != nullptr) x *= norm.w[i];
        y[i] = x;
        if (keeps && norm.tap != nullptr) norm.tap[at + i] = x;
    }
}

DEVICE aptr<float> tap_at(aptr<float> tap, bool here, int offset) {
    return here && tap != nullptr ? tap + offset : aptr<float>(nullptr);
}

// A head's part of the weight of a whole row's norm.
DEVICE aptr<const float> norm_at(aptr<const float> norm, int offset) {
    return norm != nullptr ? norm + offset : norm;
}

template <int KV, class X> DEVICE void store_head(X x, aptr<uint8_t> cache, int n, long long at) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) kv_store<KV>(cache, at + i, x[i]);
}

// attend_range on the matrix units: the block's four warps take tiles in turn, and their results are put together in `parts`
// [4, 8, D] and `states` [4, 8, 2].
template <int D>
DEVICE void attend_range_tiles(const Attend &a, const AttendShared &s, sptr<float> parts, sptr<float> states,
                               aptr<const uint8_t> keys, aptr<const uint8_t> values, int from, int to,
                               float (&acc)[ATTEND_CHANNELS][ATTEND_HEADS]) {
    int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    constexpr int WARPS = ATTEND_THREADS / 32;
    WarpAttend<D> w;
    begin<D>(w, s.q, a.heads);
    aptr<const uint16_t> k = cast<const uint16_t>(keys) + a.kv_head * D, v = cast<const uint16_t>(values) + a.kv_head * D;
    CacheRows rows = rows_from(from, a.rows);
    for (int base = from + warp * TILE_POSITIONS; base < to; base += WARPS * TILE_POSITIONS)
        add_tile<D>(w, k, v, static_cast<long long>(a.kv_heads) * D, rows, base, to, a.scale, a.soft_cap);
    float sums[D / 64][16], total = finish<D>(w, sums);
#pragma unroll
    for (int c = 0; c < D / 64; c++) store16(parts + ((warp * 8 + g) * D + 64 * c + 16 * t), sums[c], 1.0f);
    if (t == 0) {
        states[(warp * 8 + g) * 2] = w.top;
        states[(warp * 8 + g) * 2 + 1] = total;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < ATTEND_HEADS; h++) {
        float top = -infinity(), all = 0.0f, sum = 0.0f;
        for (int p = 0; p < WARPS; p++) top = fmaxf(top, states[(p * 8 + h) * 2]);
        for (int p = 0; p < WARPS; p++) {
            float state = states[(p * 8 + h) * 2 + 1];
            if (state == 0.0f) continue; // a warp without a tile; NaN is not 0
            float f = expf(states[(p * 8 + h) * 2] - top);
            all += state * f;
            if (tid < D) sum += parts[(p * 8 + h) * D + tid] * f;
        }
        acc[0][h] = sum;
        if (tid == 0) {
            s.top[h] = top;
            s.total[h] = all;
        }
    }
    __syncthreads();
}

// D: heads of so many elements on the matrix units; 0: any, without them.
template <int KV, int D>
DEVICE void step_block(const Attend &a, aptr<const float> q, int q_step, int q_from, aptr<float> q_part, aptr<const float> k, aptr<const float> v, const ValueNorm &v_norm,
                       aptr<const float> q_norm, aptr<const float> k_norm, float q_eps, float k_eps, const Turn &turn,
                       int slot, aptr<float> q_normed, aptr<float> k_normed, aptr<float> q_turned, aptr<float> k_turned,
                       aptr<uint8_t> keys, aptr<uint8_t> values, aptr<const float> sinks, aptr<float> partial,
                       aptr<float> partial_state, aptr<int> arrived, aptr<float> y, int head0, int heads_all, int start,
                       int max_splits, bool first_part, sptr<float> base) {
    int split = blockIdx.y, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int end = turn.position + 1;
    Splits splits = splits_of(end - start, max_splits);
    if (split >= splits.count) return;
    AttendShared s = attend_shared(base, a.d);
    sptr<float> normed = base + ATTEND_HEADS * (a.d + ATTEND_TILE + 3), key = normed + ATTEND_HEADS * a.d;
    float q_factor = turn.whole_rows && q_norm != nullptr ? norm_factor(q, heads_all * a.d, q_eps) : 0.0f;
    for (int h = warp; h < a.heads; h += warps) {
        int at = (head0 + h) * a.d;
        aptr<const float> mine = q + ((head0 + h) * q_step + q_from);
        if (split == 0 && q_part != nullptr)
            for (int i = threadIdx.x & 31; i < a.d; i += 32) q_part[at + i] = mine[i];
        norm_turn(mine, turn.whole_rows ? norm_at(q_norm, at) : q_norm, q_eps, q_factor, turn, a.d, normed + h * a.d,
                  s.q + h * a.d, tap_at(q_normed, split == 0, at), tap_at(q_turned, split == 0, at));
    }
    int from = start + split * splits.tokens, to = from + splits.tokens < end ? from + splits.tokens : end;
    if (to == end) {
        __syncthreads();
        int at = a.kv_head * a.d;
        if (warp == 0) {
            float k_factor = turn.whole_rows && k_norm != nullptr ? norm_factor(k, a.kv_heads * a.d, k_eps) : 0.0f;
            norm_turn(k + at, turn.whole_rows ? norm_at(k_norm, at) : k_norm, k_eps, k_factor, turn, a.d, normed, key,
                      tap_at(k_normed, first_part, at), tap_at(k_turned, first_part, at));
        } else if (warp == 1 && v_norm.on) {
            norm_value(v_norm, v, normed + a.d, a.dv, a.kv_head * a.dv, first_part);
        }
        __syncthreads();
        long long row = static_cast<long long>(slot % a.rows) * a.kv_heads + a.kv_head;
        store_head<KV>(key, keys, a.d, row * a.d);
        if (v_norm.on) store_head<KV>(normed + a.d, values, a.dv, row * a.dv);
        else store_head<KV>(v + a.kv_head * a.dv, values, a.dv, row * a.dv);
    }
    __syncthreads();
    float acc[ATTEND_CHANNELS][ATTEND_HEADS];
    if constexpr (D > 0) {
        sptr<float> parts = key + a.d;
        attend_range_tiles<D>(a, s, parts, parts + ATTEND_THREADS / 32 * 8 * D, keys, values, from, to, acc);
    } else {
        attend_range<KV>(a, s, keys, values, from, to, acc);
    }
    finish_splits(a, s, acc, splits, split, sinks != nullptr ? sinks + head0 : sinks, partial, partial_state,
                  arrived + blockIdx.x, y, head0, heads_all);
}

// Grid: (G · ceil(H/G / 8), max_splits), 128 threads; dynamic shared memory (8·(d + 128 + 3) + 9·d) floats, and 32·d + 64
// more for tiles. d and dv are multiples of 4, for a q8_0 cache of 32. tiles: on the matrix units, for an f16 cache and
// d = dv = 64 or 128. q_norm, k_norm [d], or with whole_rows [H·d] and [G·d], or null; with norm_last null is a norm without weight, and both
// are [d]. Head h's queries are d elements from q_step · h + q_from on: with whole_rows they lie side by side; q_part [H·d] or null: a
// copy of them. v_norms: the values are normed, by v_norm [dv] or null; dv ≤ 7·d then.
// dims 0: nothing is rotated, table is null. v_normed [G·dv], q_normed, q_turned [H·d], k_normed, k_turned [G·d] or null. The rest as
// in attention.cu and rope.cu; positions [1], slots [1].
extern "C" __global__ void __launch_bounds__(128, 2)
    attention_step(aptr<const float> q, int q_step, int q_from, aptr<float> q_part, aptr<const float> k, aptr<const float> v, int v_norms,
                   aptr<const float> v_norm, float v_eps, aptr<float> v_normed, aptr<const float> q_norm,
                   aptr<const float> k_norm, float q_eps, float k_eps, int whole_rows, int norm_last,
                   aptr<const float> table, int dims, int interleaved, int table_rows, aptr<const int> positions,
                   aptr<const int> slots, aptr<float> q_normed, aptr<float> k_normed, aptr<float> q_turned, aptr<float> k_turned, aptr<uint8_t> keys,
                   aptr<uint8_t> values, aptr<const float> sinks, aptr<float> partial, aptr<float> partial_state,
                   aptr<int> arrived, aptr<float> y, int kv_type, int heads, int kv_heads, int d, int dv, float scale,
                   int window, int chunk, float soft_cap, int rows, int max_splits, int tiles) {
    wait_for_previous();
    SHARED_DYNAMIC(float, base);
    int per_kv = heads / kv_heads, parts = (per_kv + ATTEND_HEADS - 1) / ATTEND_HEADS;
    int part = blockIdx.x % parts;
    Attend a;
    a.kv_head = blockIdx.x / parts;
    int head0 = a.kv_head * per_kv + part * ATTEND_HEADS;
    a.heads = per_kv - part * ATTEND_HEADS < ATTEND_HEADS ? per_kv - part * ATTEND_HEADS : ATTEND_HEADS;
    a.d = d;
    a.dv = dv;
    a.kv_heads = kv_heads;
    a.scale = scale;
    a.soft_cap = soft_cap;
    a.rows = rows;
    Turn turn;
    turn.table = table;
    turn.dims = dims;
    turn.interleaved = interleaved;
    turn.table_rows = table_rows;
    turn.position = positions[0];
    turn.norm_last = norm_last;
    turn.whole_rows = whole_rows;
    ValueNorm of_value;
    of_value.on = v_norms;
    of_value.w = v_norm;
    of_value.eps = v_eps;
    of_value.tap = v_normed;
    int start = first_visible(turn.position, window, chunk);
#define STEP(KV, D)                                                                                                       \
    step_block<KV, D>(a, q, q_step, q_from, q_part, k, v, of_value, q_norm, k_norm, q_eps, k_eps, turn, slots[0], q_normed, k_normed, q_turned, k_turned,   \
                      keys, values, sinks, partial, partial_state, arrived, y, head0, heads, start, max_splits,           \
                      part == 0, base)
    if (tiles && d == 128) STEP(KV_F16, 128);
    else if (tiles) STEP(KV_F16, 64);
    else if (kv_type == KV_F16) STEP(KV_F16, 0);
    else if (kv_type == KV_F32) STEP(KV_F32, 0);
    else STEP(KV_Q8_0, 0);
#undef STEP
}
KERNEL(attention_step)
