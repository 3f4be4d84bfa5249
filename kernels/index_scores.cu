// IndexScores: q [T, H·d], w [T, H], key cache of one head → Σ_h w_h · max(q_h·k, 0) for each position up to the token's own, 0
// behind it: [T, S].
#include "common/kv.cuh"

template <int KV>
DEVICE float index_score(aptr<const float> q, aptr<const float> w, aptr<const uint8_t> keys, long long at, int heads,
                         int d) {
    float score = 0.0f;
    for (int h = 0; h < heads; h++) {
        float dot = 0.0f;
        for (int i = 0; i < d; i += 4) {
            float4 k = kv_load4<KV>(keys, at + i);
            float4 b = cast<const float4>(q + h * d)[i >> 2];
            dot += k.x * b.x + k.y * b.y + k.z * b.z + k.w * b.w;
        }
        // Not max: a NaN stays one.
        score += w[h] * (dot < 0.0f ? 0.0f : dot);
    }
    return score;
}

// One thread a position. Grid: (ceil(S / threads), T). d is a multiple of 4.
extern "C" __global__ void __launch_bounds__(128)
    index_scores(aptr<const float> q, aptr<const float> w, aptr<const int> positions, aptr<const uint8_t> keys,
                 aptr<float> y, int kv_type, int heads, int d, int cached) {
    wait_for_previous();
    int s = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (s >= cached) return;
    float v = 0.0f;
    if (s <= positions[t]) {
        aptr<const float> a = q + static_cast<long long>(t) * heads * d, b = w + t * heads;
        long long at = static_cast<long long>(s) * d;
        v = kv_type == KV_F16   ? index_score<KV_F16>(a, b, keys, at, heads, d)
            : kv_type == KV_F32 ? index_score<KV_F32>(a, b, keys, at, heads, d)
                                : index_score<KV_Q8_0>(a, b, keys, at, heads, d);
    }
    y[static_cast<long long>(t) * cached + s] = v;
}
KERNEL(index_scores)
