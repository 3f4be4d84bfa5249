// scores [H, T, S] → softmax over the visible positions [H, T, S]; 0 elsewhere. For looking at, like the scores.
#include "common/visible.cuh"

// One warp a row. Grid: (T, H), 32 threads. window and chunk 0: none; sinks [H] or null; mask [T, S], 0 at positions that are
// not seen, or null.
extern "C" __global__ void attention_softmax(aptr<const float> scores, aptr<const int> positions, aptr<const float> sinks,
                                             aptr<const float> mask, aptr<float> y, int cached, int window, int chunk) {
    wait_for_previous();
    int t = blockIdx.x, h = blockIdx.y, lane = threadIdx.x;
    long long row = (static_cast<long long>(h) * gridDim.x + t) * cached;
    int end = positions[t] + 1, start = first_visible(positions[t], window, chunk);
    auto seen = [&](int i) { return mask == nullptr || mask[static_cast<long long>(t) * cached + i] != 0.0f; };
    float top = sinks != nullptr ? sinks[h] : -infinity();
    for (int i = start + lane; i < end; i += 32)
        if (seen(i)) top = fmaxf(top, scores[row + i]);
    top = warp_max(top);
    float total = 0.0f;
    for (int i = start + lane; i < end; i += 32)
        if (seen(i)) total += expf(scores[row + i] - top);
    total = warp_sum(total);
    if (sinks != nullptr) total += expf(sinks[h] - top);
    for (int i = lane; i < cached; i += 32)
        y[row + i] = i >= start && i < end && seen(i) ? expf(scores[row + i] - top) / total : 0.0f;
}
KERNEL(attention_softmax)
