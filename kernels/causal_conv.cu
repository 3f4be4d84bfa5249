// CausalConv: y[t, c] = act(Σ_j w[c, j] · x[t − (k−1) + j, c] (+ b[c])), the oldest term first; x, y [T, C], w [C, k].
//
// Inputs of earlier steps lie in the sequence's state [C, k−1], oldest first; before position 0 there are none. A block has
// its channels to itself, a lane each: its warps take the tokens in turn, and once all have read the state one changes it.
#include "common/gate.cuh"

constexpr int CONV_CHANNELS = 32;

// Input t of channel c; t < 0 counts back into the state, which is fresh where the step begins a sequence.
DEVICE float conv_input(aptr<const float> x, aptr<const float> past, int t, int c, int channels, int kept, bool fresh) {
    if (t >= 0) return x[t * channels + c];
    return fresh ? 0.0f : past[kept + t];
}

// Grid: ceil(C / 32); whole warps. bias [C], or null.
extern "C" __global__ void causal_conv(aptr<const float> x, aptr<const int> positions, aptr<const float> w,
                                       aptr<const float> bias, aptr<float> state, aptr<float> y, int tokens, int channels,
                                       int kernel_size, int activation, float alpha, float limit) {
    wait_for_previous();
    int c = blockIdx.x * CONV_CHANNELS + (threadIdx.x & 31), warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int kept = kernel_size - 1;
    bool fresh = positions[0] == 0, mine = c < channels;
    aptr<float> past = state + (mine ? c : 0) * kept;
    aptr<const float> weights = w + (mine ? c : 0) * kernel_size;
    for (int t = warp; mine && t < tokens; t += warps) {
        float sum = 0.0f;
        for (int j = 0; j < kernel_size; j++)
            sum = fmaf(weights[j], conv_input(x, past, t - kept + j, c, channels, kept, fresh), sum);
        if (bias != nullptr) sum += bias[c];
        y[t * channels + c] = activate(activation, sum, alpha, limit);
    }
    __syncthreads();
    if (!mine || warp != 0) return;
    // Ascending: an input moves to where one that is read no more lay.
    for (int j = 0; j < kept; j++) past[j] = conv_input(x, past, tokens - kept + j, c, channels, kept, fresh);
}
KERNEL(causal_conv)
