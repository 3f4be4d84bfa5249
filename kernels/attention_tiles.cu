// Attention of many tokens on the matrix units: as attention.cu, for an f16 cache and heads of 64 or 128.
//
// A warp takes up to 8 query heads of one token that share a KV head; the four warps of a block take four tokens in a row, so
// that what one of them reads the others find in the cache.
#include "common/attend_tiles.cuh"
#include "common/visible.cuh"

constexpr int TOKENS_PER_BLOCK = 4;

template <int D>
DEVICE void tokens_attend(aptr<const float> q, aptr<const int> positions, aptr<const uint8_t> keys,
                          aptr<const uint8_t> values, aptr<const float> sinks, aptr<float> y, int heads, int kv_heads,
                          float scale, int window, int chunk, float soft_cap, int rows, int tokens) {
    int per_kv = heads / kv_heads, parts = (per_kv + 7) / 8, part = blockIdx.x % parts, kv_head = blockIdx.x / parts;
    int head0 = kv_head * per_kv + 8 * part, mine = min(per_kv - 8 * part, 8);
    int token = blockIdx.y * TOKENS_PER_BLOCK + (threadIdx.x >> 5), lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    if (token >= tokens) return;
    int end = positions[token] + 1, start = first_visible(positions[token], window, chunk);
    long long row0 = static_cast<long long>(token) * heads + head0, stride = static_cast<long long>(kv_heads) * D;
    WarpAttend<D> w;
    begin<D>(w, q + row0 * D, mine);
    aptr<const uint16_t> k = cast<const uint16_t>(keys) + kv_head * D, v = cast<const uint16_t>(values) + kv_head * D;
    CacheRows at_rows = rows_from(start, rows);
    for (int base = start; base < end; base += TILE_POSITIONS)
        add_tile<D>(w, k, v, stride, at_rows, base, end, scale, soft_cap);
    float sums[D / 64][16], total = finish<D>(w, sums), factor = 1.0f;
    if (sinks != nullptr && g < mine) {
        float sink = sinks[head0 + g], bound = fmaxf(w.top, sink);
        factor = expf(w.top - bound);
        total = total * factor + expf(sink - bound);
    }
    if (g < mine) {
#pragma unroll
        for (int c = 0; c < D / 64; c++) store16(y + ((row0 + g) * D + 64 * c + 16 * t), sums[c], factor / total);
    }
}

// Grid: (G · ceil(H/G / 8), ceil(T / 4)), 128 threads. d = 64 or 128, of keys and values. The rest as in attention.cu.
extern "C" __global__ void __launch_bounds__(128)
    attention_tiles(aptr<const float> q, aptr<const int> positions, aptr<const uint8_t> keys, aptr<const uint8_t> values,
                    aptr<const float> sinks, aptr<float> y, int heads, int kv_heads, int d, float scale, int window,
                    int chunk, float soft_cap, int rows, int tokens) {
    wait_for_previous();
#define ATTEND(D) tokens_attend<D>(q, positions, keys, values, sinks, y, heads, kv_heads, scale, window, chunk, soft_cap, rows, tokens)
    if (d == 128) ATTEND(128);
    else ATTEND(64);
#undef ATTEND
}
KERNEL(attention_tiles)
