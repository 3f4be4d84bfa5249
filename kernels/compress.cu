// Compress: a, b [T, c·d] → at the last position of each window of `ratio`, of each channel Σ softmax(b + bias)·a over the window; 0 at
// the other positions: [T, d]. With overlap c is 2, and the window before takes part with the first d channels.
//
// What positions brought lies in the sequence's state [d, 2 · slots], of each channel all a, then all b: with overlap 2 · ratio
// places of the first d channels (a window's and the one's before it), then `ratio` of the last d; else `ratio` places.
#include "common/prelude.cuh"

struct WindowMean {
    float top, sum, total;
    DEVICE void add(float a, float b) {
        if (b > top) {
            float shrink = expf(top - b);
            sum *= shrink;
            total *= shrink;
            top = b;
        }
        float share = expf(b - top);
        sum = fmaf(share, a, sum);
        total += share;
    }
};

// One thread a channel, which walks the tokens in order. Grid: ceil(d / threads). bias [ratio, c·d].
extern "C" __global__ void compress(aptr<const float> a, aptr<const float> b, aptr<const int> positions,
                                    aptr<const float> bias, aptr<float> state, aptr<float> y, int tokens, int width,
                                    int ratio, int overlap) {
    wait_for_previous();
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= width) return;
    int parts = overlap ? 2 : 1, slots = overlap ? 3 * ratio : ratio, own = overlap ? 2 * ratio : 0;
    aptr<float> brought = state + static_cast<long long>(channel) * 2 * slots, weights = brought + slots;
    for (int t = 0; t < tokens; t++) {
        int position = positions[t], in_window = position % ratio;
        for (int part = 0; part < parts; part++) {
            int slot = overlap && part == 0 ? position % (2 * ratio) : own + in_window;
            long long at = static_cast<long long>(t) * parts * width + part * width + channel;
            brought[slot] = a[at];
            weights[slot] = b[at] + bias[(in_window * parts + part) * width + channel];
        }
        float out = 0.0f;
        if (in_window == ratio - 1) {
            int first = position + 1 - ratio;
            WindowMean mean = {-infinity(), 0.0f, 0.0f};
            for (int i = 0; overlap && first > 0 && i < ratio; i++) {
                int slot = (first - ratio + i) % (2 * ratio);
                mean.add(brought[slot], weights[slot]);
            }
            for (int i = 0; i < ratio; i++) mean.add(brought[own + i], weights[own + i]);
            out = mean.sum / mean.total;
        }
        y[static_cast<long long>(t) * width + channel] = out;
    }
}
KERNEL(compress)
