// DeltaRule: the gated delta rule, token by token. For each value head, with q̂ = q / √(Σq² + eps) · scale and k̂ likewise without
// scale: S ← g · S; S ← S + k̂ ⊗ β·(v − Sᵀk̂); out = Sᵀq̂, S [dk, dv] of the sequence, 0 before position 0.
//
// A block has 32 columns of a head's S in its registers for the whole step: a lane a column, a warp DELTA_ROWS rows. The sums
// over rows of a token are taken of S as it was, so that one exchange does for both: out_j = Σ q̂ᵢgᵢ·Sᵢⱼ + (q̂·k̂)·δⱼ.
#include "common/prelude.cuh"

constexpr int DELTA_ROWS = 16;

// What a block keeps of a token: q̂, k̂ and the decay g by rows of S, zero behind the last, then q̂·k̂ and β.
struct DeltaToken {
    sptr<float> q, k, decay, dot, beta;
};
DEVICE DeltaToken delta_token(sptr<float> base, int rows, int token) {
    DeltaToken s;
    s.q = base + token * (3 * rows + 4);
    s.k = s.q + rows;
    s.decay = s.k + rows;
    s.dot = s.decay + rows;
    s.beta = s.dot + 1;
    return s;
}

// One warp, a token: q, k [dk], g [decays].
DEVICE void stage_delta_token(DeltaToken s, aptr<const float> q, aptr<const float> k, aptr<const float> g, float beta, int dk,
                              int rows, int decays, float eps, float scale) {
    int lane = threadIdx.x & 31;
    float qq = 0.0f, kk = 0.0f, qk = 0.0f;
    for (int i = lane; i < dk; i += 32) {
        qq += q[i] * q[i];
        kk += k[i] * k[i];
        qk += q[i] * k[i];
    }
    float of_q = scale / sqrtf(warp_sum(qq) + eps), of_k = 1.0f / sqrtf(warp_sum(kk) + eps);
    qk = warp_sum(qk);
    for (int i = lane; i < rows; i += 32) {
        bool inside = i < dk;
        s.q[i] = inside ? q[i] * of_q : 0.0f;
        s.k[i] = inside ? k[i] * of_k : 0.0f;
        s.decay[i] = inside ? g[decays == 1 ? 0 : i] : 0.0f;
    }
    if (lane == 0) {
        s.dot[0] = qk * of_q * of_k;
        s.beta[0] = beta;
    }
}

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
            stage_delta_token(delta_token(base, rows, t), row, row + key_heads * dk,
                              decay + ((from + t) * heads + head) * decays, beta[(from + t) * heads + head], dk, rows,
                              decays, eps, scale);
        }
        __syncthreads();
        for (int t = 0; t < count; t++) {
            DeltaToken token = delta_token(base, rows, t);
            // Two halves in turn: a warp that is ahead writes where nobody reads any more.
            sptr<float> mine_of = sums + (t & 1) * 64 * warps;
            float by_k = 0.0f, by_q = 0.0f;
#pragma unroll
            for (int i = 0; i < DELTA_ROWS; i++) {
                s[i] *= token.decay[first + i];
                by_k += token.k[first + i] * s[i];
                by_q += token.q[first + i] * s[i];
            }
            mine_of[warp * 64 + lane] = by_k;
            mine_of[warp * 64 + 32 + lane] = by_q;
            __syncthreads();
            float read = 0.0f, out = 0.0f;
            for (int w = 0; w < warps; w++) {
                read += mine_of[w * 64 + lane];
                out += mine_of[w * 64 + 32 + lane];
            }
            long long at = static_cast<long long>(from + t) * width + 2 * key_heads * dk + head * dv + column;
            float delta = mine ? token.beta[0] * (qkv[at] - read) : 0.0f;
#pragma unroll
            for (int i = 0; i < DELTA_ROWS; i++) s[i] += token.k[first + i] * delta;
            if (mine && warp == t % warps)
                y[(static_cast<long long>(from + t) * heads + head) * dv + column] = out + token.dot[0] * delta;
        }
    }
#pragma unroll
    for (int i = 0; i < DELTA_ROWS; i++)
        if (mine && first + i < dk) held[(first + i) * dv + column] = s[i];
}
KERNEL(delta_rule)
