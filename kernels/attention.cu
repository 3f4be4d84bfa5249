// Attention: q [T, H·d], caches, positions [T] → softmax(scale · q·kᵀ) · v, causal, [T, H·dv].
//
// One block takes up to 8 query heads of one KV head, one token and one split of the cached positions; the number of
// splits follows the depth (common/attend.cuh). With max_splits = 1, as in prefill, a block does a query alone.
#include "common/attend.cuh"
#include "common/visible.cuh"

template <int KV>
DEVICE void attend_block(const Attend &a, aptr<const float> q, aptr<const int> positions, aptr<const uint8_t> keys,
                         aptr<const uint8_t> values, aptr<const float> sinks, aptr<float> partial,
                         aptr<float> partial_state, aptr<int> arrived, aptr<float> y, int head0, int heads_all,
                         int window, int chunk, int max_splits, sptr<float> base) {
    int t = blockIdx.z, split = blockIdx.y;
    int end = positions[t] + 1, start = first_visible(end - 1, window, chunk);
    Splits splits = splits_of(end - start, max_splits);
    if (split >= splits.count) return;
    AttendShared s = attend_shared(base, a.d);
    for (int i = threadIdx.x; i < a.heads * a.d; i += blockDim.x) s.q[i] = q[(t * heads_all + head0) * a.d + i];
    int from = start + split * splits.tokens, to = from + splits.tokens < end ? from + splits.tokens : end;
    float acc[ATTEND_CHANNELS][ATTEND_HEADS];
    attend_range<KV>(a, s, keys, values, from, to, acc);
    finish_splits(a, s, acc, splits, split, sinks != nullptr ? sinks + head0 : sinks, partial, partial_state,
                  arrived + (t * gridDim.x + blockIdx.x), y, t * heads_all + head0, gridDim.z * heads_all);
}

// Grid: (G · ceil(H/G / 8), max_splits, T), 128 threads, dynamic shared memory 8·(d + 128 + 3) floats.
// arrived [grid.x · T] is zero and is left zero. window and chunk 0: none; soft_cap 0: none; sinks [H] or null.
// value_in_key: the values' cache is the keys'. rows: of the caches, no fewer than a query sees; position p is in row p modulo so
// many. mask [T, cached], 0 at positions that are not seen, or null.
extern "C" __global__ void __launch_bounds__(128, BLOCKS_AT_ONCE(4, 4, 5))
    attention(aptr<const float> q, aptr<const int> positions, aptr<const uint8_t> keys, aptr<const uint8_t> values,
              aptr<const float> sinks, aptr<float> partial, aptr<float> partial_state, aptr<int> arrived, aptr<float> y,
              int kv_type, int heads, int kv_heads, int d, int dv, float scale, int window, int chunk,
              float soft_cap, int value_in_key, aptr<const float> mask, int cached, int rows, int max_splits) {
    wait_for_previous();
    SHARED_DYNAMIC(float, base);
    int per_kv = heads / kv_heads, parts = (per_kv + ATTEND_HEADS - 1) / ATTEND_HEADS;
    int part = blockIdx.x % parts, head0;
    Attend a;
    a.kv_head = blockIdx.x / parts;
    head0 = a.kv_head * per_kv + part * ATTEND_HEADS;
    a.heads = per_kv - part * ATTEND_HEADS < ATTEND_HEADS ? per_kv - part * ATTEND_HEADS : ATTEND_HEADS;
    a.d = d;
    a.dv = dv;
    a.kv_heads = kv_heads;
    a.scale = scale;
    a.soft_cap = soft_cap;
    a.rows = rows;
    a.value_in_key = value_in_key != 0;
    if (mask != nullptr) a.mask = mask + static_cast<long long>(blockIdx.z) * cached;
#define ATTEND(KV)                                                                                                     \
    attend_block<KV>(a, q, positions, keys, values, sinks, partial, partial_state, arrived, y, head0, heads, window,   \
                     chunk, max_splits, base)
    if (kv_type == KV_F16) ATTEND(KV_F16);
    else if (kv_type == KV_F32) ATTEND(KV_F32);
    else ATTEND(KV_Q8_0);
#undef ATTEND
}
KERNEL(attention)
