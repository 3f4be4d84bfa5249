// The scores inside Attention, for looking at: q [T, H·d], key cache → [H, T, S], 0 where the query does not see.
#include "common/kv.cuh"
#include "common/visible.cuh"

template <int KV> DEVICE float score(aptr<const float> q, aptr<const uint8_t> keys, long long at, int d) {
    float sum = 0.0f;
    for (int i = 0; i < d; i += 4) {
        float4 k = kv_load4<KV>(keys, at + i);
        sum += k.x * q[i] + k.y * q[i + 1] + k.z * q[i + 2] + k.w * q[i + 3];
    }
    return sum;
}

// Grid: (ceil(S / threads), T, H). rows: of the cache; position p is in row p modulo so many.
extern "C" __global__ void attention_scores(aptr<const float> q, aptr<const int> positions, aptr<const uint8_t> keys,
                                            aptr<float> y, int kv_type, int kv_heads, int d, float scale, int window,
                                            int chunk, float soft_cap, int cached, int rows) {
    wait_for_previous();
    int s = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, h = blockIdx.z, heads = gridDim.z;
    if (s >= cached) return;
    float v = 0.0f;
    int end = positions[t] + 1, start = first_visible(positions[t], window, chunk);
    if (s >= start && s < end) {
        aptr<const float> a = q + (t * heads + h) * d;
        long long at = (static_cast<long long>(s % rows) * kv_heads + h / (heads / kv_heads)) * d;
        v = scale * (kv_type == KV_F16   ? score<KV_F16>(a, keys, at, d)
                     : kv_type == KV_F32 ? score<KV_F32>(a, keys, at, d)
                                         : score<KV_Q8_0>(a, keys, at, d));
        if (soft_cap > 0.0f) v = soft_cap * tanhf(v / soft_cap);
    }
    y[(static_cast<long long>(h) * gridDim.y + t) * cached + s] = v;
}
KERNEL(attention_scores)
