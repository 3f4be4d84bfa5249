// CompressedAttention: softmax(scale · q·kᵀ)·k over the keys of the last `window` positions and, of what lies before, the entries at
// positions p up to the token's own of which p + 1 is a multiple of `ratio`: q [T, H·d], key and entry caches of one head → [T, H·d].
#include "common/kv.cuh"

constexpr int COMPRESSED_THREADS = 128;

// Every thread gets the largest of all threads' numbers. Begins and ends with a barrier.
DEVICE float block_max(float v) {
    SHARED(float, partial, COMPRESSED_THREADS / 32);
    v = warp_max(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = v;
    __syncthreads();
    float top = partial[0];
    for (int w = 1; w < COMPRESSED_THREADS / 32; w++) top = fmaxf(top, partial[w]);
    __syncthreads();
    return top;
}

struct CompressedStep {
    aptr<const uint8_t> keys, entries;
    aptr<const float> mask; // of the token [S], or null
    int position, window, ratio, d;
    float scale;
};

// Where key i of those that a token may see lies, and in which cache; -1: a mask hides it.
DEVICE int key_place(const CompressedStep &s, int near, int i) {
    if (i < near) return s.position + 1 - near + i;
    int p = (i - near + 1) * s.ratio - 1;
    return s.mask != nullptr && s.mask[p] == 0.0f ? -1 : p;
}

// The token's head: q and out [d] in shared memory.
template <int KV>
DEVICE void attend_compressed(const CompressedStep &s, sptr<const float> q, sptr<float> out, float sink, bool has_sink) {
    SHARED(float, shares, COMPRESSED_THREADS);
    SHARED(int, places, COMPRESSED_THREADS);
    int tid = threadIdx.x;
    int near = s.position + 1 < s.window ? s.position + 1 : s.window;
    int count = near + (s.position + 1) / s.ratio;
    float top = -infinity(), total = 0.0f;
    for (int first = 0; first < count; first += COMPRESSED_THREADS) {
        int i = first + tid, place = i < count ? key_place(s, near, i) : -1;
        float score = -infinity();
        if (place >= 0) {
            aptr<const uint8_t> cache = i < near ? s.keys : s.entries;
            long long at = static_cast<long long>(place) * s.d;
            float sum = 0.0f;
            for (int j = 0; j < s.d; j += 4) {
                float4 k = kv_load4<KV>(cache, at + j);
                sum += k.x * q[j] + k.y * q[j + 1] + k.z * q[j + 2] + k.w * q[j + 3];
            }
            score = s.scale * sum;
        }
        float higher = fmaxf(top, block_max(score));
        // A tile of which nothing is seen, in front of all that is.
        if (higher == -infinity()) continue;
        float shrink = expf(top - higher), share = place >= 0 ? expf(score - higher) : 0.0f;
        top = higher;
        shares[tid] = share;
        places[tid] = place;
        total = total * shrink + block_sum(share);
        int here = count - first < COMPRESSED_THREADS ? count - first : COMPRESSED_THREADS;
        for (int j = tid; j < s.d; j += COMPRESSED_THREADS) {
            float sum = out[j] * shrink;
            for (int k = 0; k < here; k++) {
                if (places[k] < 0) continue;
                aptr<const uint8_t> cache = first + k < near ? s.keys : s.entries;
                sum += shares[k] * kv_load<KV>(cache, static_cast<long long>(places[k]) * s.d + j);
            }
            out[j] = sum;
        }
        __syncthreads();
    }
    float higher = has_sink ? fmaxf(top, sink) : top, shrink = expf(top - higher);
    total = total * shrink + (has_sink ? expf(sink - higher) : 0.0f);
    for (int j = tid; j < s.d; j += COMPRESSED_THREADS) out[j] = out[j] * shrink / total;
}

// Grid: (T, H), 128 threads. d a multiple of 4; sinks [H] or null; mask [T, S], of entries, or null. Shared: 2·d floats.
extern "C" __global__ void __launch_bounds__(COMPRESSED_THREADS)
    compressed_attention(aptr<const float> q, aptr<const int> positions, aptr<const uint8_t> keys,
                         aptr<const uint8_t> entries, aptr<const float> sinks, aptr<const float> mask, aptr<float> y,
                         int kv_type, int d, float scale, int window, int ratio, int cached) {
    SHARED_DYNAMIC(float, base);
    wait_for_previous();
    int t = blockIdx.x, h = blockIdx.y, heads = gridDim.y, tid = threadIdx.x;
    long long at = (static_cast<long long>(t) * heads + h) * d;
    sptr<float> query = base, out = base + d;
    for (int j = tid; j < d; j += COMPRESSED_THREADS) {
        query[j] = q[at + j];
        out[j] = 0.0f;
    }
    __syncthreads();
    CompressedStep s;
    s.keys = keys;
    s.entries = entries;
    s.mask = mask;
    if (mask != nullptr) s.mask = mask + static_cast<long long>(t) * cached;
    s.position = positions[t];
    s.window = window;
    s.ratio = ratio;
    s.d = d;
    s.scale = scale;
    bool has_sink = sinks != nullptr;
    float sink = has_sink ? sinks[h] : 0.0f;
    if (kv_type == KV_F16)
        attend_compressed<KV_F16>(s, query, out, sink, has_sink);
    else if (kv_type == KV_F32)
        attend_compressed<KV_F32>(s, query, out, sink, has_sink);
    else
        attend_compressed<KV_Q8_0>(s, query, out, sink, has_sink);
    for (int j = tid; j < d; j += COMPRESSED_THREADS) y[at + j] = out[j];
}
KERNEL(compressed_attention)
