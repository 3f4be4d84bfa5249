// Router's choice, gate and up of the chosen experts with their biases, gated activation, for one token.
//
// Every block finds the choice for itself, by one warp; its warps then take (expert, row) pairs and hold gate and up of a row together.
// At the end each warp asks for its share of the chosen experts' down weights, which the next launch reads.
#include "common/gated.cuh"
#include "common/staged.cuh"
#include "common/top_k.cuh"

// Grid: blocks. logits [E], x [n] → ids [K], weights [K], y [K, rows]; gate_out, up_out, activated [K, rows] or null;
// gate_bias, up_bias [E, rows] or null.
// stage as in norm_matmul.cu; dynamic shared memory staged_words(n) words for STAGE_Q8. next_w: experts of next_bytes bytes, or null.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(2, 3, 2))
    route_gate_up(aptr<const float> logits, aptr<const float> bias, aptr<int> ids, aptr<float> weights, int experts,
                  int experts_per_token, int gate, int renormalise, float scale,
                  aptr<const float> expert_scale, int n_group, int topk_group, int best_two, aptr<const float> x, int n, int rows,
                  int stage, int gate_format, gptr<const uint8_t> gate_w, unsigned long long gate_row_bytes,
                  unsigned long long gate_expert_bytes, int up_format, gptr<const uint8_t> up_w,
                  unsigned long long up_row_bytes, unsigned long long up_expert_bytes, aptr<const float> gate_bias,
                  aptr<const float> up_bias, int activation, float alpha, float limit, aptr<float> gate_out,
                  aptr<float> up_out, aptr<float> activated, aptr<float> y, gptr<const uint8_t> next_w,
                  unsigned long long next_bytes) {
    SHARED_DYNAMIC(float, base);
    SHARED(int, chosen, MAX_EXPERTS_PER_TOKEN);
    wait_for_previous();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    StagedQ8 staged = staged_q8(base, n);
    // One warp chooses while the others put the activations in 8 bits.
    if (warp == 0)
        warp_choose(logits, bias, experts, experts_per_token, gate, n_group, topk_group, best_two, chosen);
    else if (stage & STAGE_Q8)
        stage_q8_by(x, n, staged, threadIdx.x - 32, blockDim.x - 32);
    __syncthreads();
    if (blockIdx.x == 0 && warp == 0) {
        float weight = warp_weights(logits, chosen, experts, experts_per_token, gate, renormalise, scale);
        if (lane < experts_per_token) {
            ids[lane] = chosen[lane];
            weights[lane] = expert_scale != nullptr ? weight * expert_scale[chosen[lane]] : weight;
        }
    }
    int first = blockIdx.x * warps + warp, stride = gridDim.x * warps;
    if (first < experts_per_token * rows) {
        int id = chosen[first / rows], o = first % rows;
        warp_prefetch(gate_w + (id * gate_expert_bytes + o * gate_row_bytes), gate_row_bytes);
        warp_prefetch(up_w + (id * up_expert_bytes + o * up_row_bytes), up_row_bytes);
    }
    for (int i = first; i < experts_per_token * rows; i += stride) {
        int id = chosen[i / rows], o = i % rows;
        gptr<const uint8_t> row[2] = {gate_w + (id * gate_expert_bytes + o * gate_row_bytes),
                                      up_w + (id * up_expert_bytes + o * up_row_bytes)};
        float acc[2];
        staged_pair(gate_format, up_format, row, n, x, staged, stage, lane, acc);
        float g = warp_sum(acc[0]), u = warp_sum(acc[1]);
        if (lane == 0) {
            if (gate_bias != nullptr) g += gate_bias[id * rows + o];
            if (up_bias != nullptr) u += up_bias[id * rows + o];
            float a, v = gated(activation, g, u, alpha, limit, a);
            if (gate_out != nullptr) gate_out[i] = g;
            if (up_out != nullptr) up_out[i] = u;
            if (activated != nullptr) activated[i] = a;
            y[i] = v;
        }
    }
    if (next_w != nullptr) {
        unsigned lines = unsigned(next_bytes / 128); // of an expert
        for (unsigned i = first * 32 + lane; i < experts_per_token * lines; i += stride * 32)
            prefetch_line(next_w + (chosen[i / lines] * next_bytes + i % lines * 128ull));
    }
}
KERNEL(route_gate_up)
