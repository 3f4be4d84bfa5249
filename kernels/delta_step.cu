// DeltaGates and DeltaRule for one token: β = sigmoid(b), g = e^(a · softplus(dt + dt_bias)) or, with a bound below 0,
// e^(bound · sigmoid(a · (dt + dt_bias))), a of its head; the rule as in delta_rule.cu. b and dt may lie beside something else.
#include "common/delta.cuh"
#include "common/gate.cuh"
#include "common/part.cuh"

// The decay of a row of S: that of its head, or its own. keeps: this block writes it to decay.
struct MadeDecay {
    Part dt;
    aptr<const float> dt_bias;
    float a, bound;
    int head, decays;
    bool keeps;
    aptr<float> decay;
    DEVICE float operator()(int row) const {
        int i = decays == 1 ? head : head * decays + row;
        bool first = keeps && (decays > 1 || row == 0);
        float x = part_element(dt, i, first) + dt_bias[i];
        float g = expf(bound < 0.0f ? bound * sigmoid(a * x) : a * softplus(x));
        if (first && decay != nullptr) decay[i] = g;
        return g;
    }
};

// b: Hv elements, dt: Hv · decays, each by its Part (common/part.cuh); a [Hv], dt_bias [Hv · decays]; beta [Hv], decay
// [Hv · decays] or null. The rest as in delta_rule.cu. Grid: (ceil(dv / 32), Hv); a warp for every 16 rows, at most 16. Shared:
// 3 · 16 · warps + 4 floats, then 4 · 32 · warps.
extern "C" __global__ void __launch_bounds__(512, 1)
    delta_step(aptr<const float> qkv, aptr<const float> b, int b_len, int b_step, int b_from, aptr<float> b_copy,
               aptr<const float> dt, int dt_len, int dt_step, int dt_from, aptr<float> dt_copy, aptr<const float> a,
               aptr<const float> dt_bias, float bound, aptr<float> beta, aptr<float> decay, aptr<const int> positions,
               aptr<float> state, aptr<float> y, int key_heads, int dk, int dv, int tiled, int decays, float eps,
               float scale) {
    SHARED_DYNAMIC(float, base);
    wait_for_previous();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, rows = DELTA_ROWS * warps;
    int head = blockIdx.y, heads = gridDim.y, column = blockIdx.x * 32 + lane, first = warp * DELTA_ROWS;
    int key_head = tiled ? head % key_heads : head / (heads / key_heads);
    bool mine = column < dv, fresh = positions[0] == 0, keeps = blockIdx.x == 0;
    aptr<float> held = state + head * dk * dv;
    float s[DELTA_ROWS];
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++)
        s[i] = mine && !fresh && first + i < dk ? held[(first + i) * dv + column] : 0.0f;
    DeltaToken token = delta_token(base, rows, 0);
    if (warp == 0) {
        MadeDecay made;
        made.dt = part_of(dt, dt_len, dt_step, dt_from, dt_copy);
        made.dt_bias = dt_bias;
        made.a = a[head];
        made.bound = bound;
        made.head = head;
        made.decays = decays;
        made.keeps = keeps;
        made.decay = decay;
        float open = sigmoid(part_element(part_of(b, b_len, b_step, b_from, b_copy), head, keeps && lane == 0));
        if (keeps && lane == 0 && beta != nullptr) beta[head] = open;
        stage_delta_token(token, qkv + key_head * dk, qkv + (key_heads + key_head) * dk, made, open, dk, rows, eps, scale);
    }
    __syncthreads();
    float v = mine ? qkv[2 * key_heads * dk + head * dv + column] : 0.0f;
    float out = delta_advance(s, token, base + (3 * rows + 4), v, mine);
    if (mine && warp == 0) y[head * dv + column] = out;
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++)
        if (mine && first + i < dk) held[(first + i) * dv + column] = s[i];
}
KERNEL(delta_step)
