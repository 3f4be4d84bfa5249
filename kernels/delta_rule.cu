// DeltaRule: the gated delta rule, token by token. For each value head, with q̂ = q / √(Σq² + eps) · scale and k̂ likewise without
// scale: S ← g · S; S ← S + k̂ ⊗ β·(v − Sᵀk̂); out = Sᵀq̂, S [dk, dv] of the sequence, 0 before position 0.
//
// A block has its columns of S (common/delta.cuh) for the whole step.
#include "common/delta.cuh"

// The decay of a row of S: one for all, or its own.
struct GivenDecay {
    aptr<const float> g;
    int decays;
    DEVICE float operator()(int i) const { return g[decays == 1 ? 0 : i]; }
};

// qkv [T, 2·Hk·dk + Hv·dv], beta [T, Hv], decay [T, Hv · decays], state [Hv, dk, dv] → y [T, Hv·dv]. Grid: (ceil(dv / 32), Hv);
// a warp for every 16 rows, at most 16. key_heads Hk; tiled: value head h reads key head h % Hk, else h / (Hv / Hk). Shared:
// chunk · (3 · 16 · warps + 4) floats, then 4 · 32 · warps.
extern "C" __global__ void __launch_bounds__(512, 1)
    delta_rule(aptr<const float> qkv, aptr<const float> beta, aptr<const float> decay, aptr<const int> positions,
               aptr<float> state, aptr<float> y, int tokens, int key_heads, int dk, int dv, int tiled, int decays,
               float eps, float scale, int chunk) {
    SHARED_DYNAMIC(float, base);
    wait_for_previous();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, rows = DELTA_ROWS * warps;
    int head = blockIdx.y, heads = gridDim.y, column = blockIdx.x * 32 + lane, first = warp * DELTA_ROWS;
    int key_head = tiled ? head % key_heads : head / (heads / key_heads);
    int width = 2 * key_heads * dk + heads * dv;
    bool mine = column < dv, fresh = positions[0] == 0;
    aptr<float> held = state + head * dk * dv;
    sptr<float> sums = base + chunk * (3 * rows + 4);
    float s[DELTA_ROWS];
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++)
        s[i] = mine && !fresh && first + i < dk ? held[(first + i) * dv + column] : 0.0f;
    for (int from = 0; from < tokens; from += chunk) {
        int count = tokens - from < chunk ? tokens - from : chunk;
        __syncthreads();
        for (int t = warp; t < count; t += warps) {
            aptr<const float> row = qkv + static_cast<long long>(from + t) * width + key_head * dk;
            GivenDecay given;
            given.g = decay + ((from + t) * heads + head) * decays;
            given.decays = decays;
            stage_delta_token(delta_token(base, rows, t), row, row + key_heads * dk, given, beta[(from + t) * heads + head],
                              dk, rows, eps, scale);
        }
        __syncthreads();
        for (int t = 0; t < count; t++) {
            DeltaToken token = delta_token(base, rows, t);
            // Two halves in turn: a warp that is ahead writes where nobody reads any more.
            sptr<float> of_turn = sums + (t & 1) * 64 * warps;
            long long at = static_cast<long long>(from + t) * width + 2 * key_heads * dk + head * dv + column;
            float out = delta_advance(s, token, of_turn, mine ? qkv[at] : 0.0f, mine);
            if (mine && warp == t % warps)
                y[(static_cast<long long>(from + t) * heads + head) * dv + column] = out;
        }
    }
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++)
        if (mine && first + i < dk) held[(first + i) * dv + column] = s[i];
}
KERNEL(delta_rule)
