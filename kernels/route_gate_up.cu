// Router's choice, gate and up of the chosen experts, SwiGLU, for one token. Phase 5 of a decode layer.
//
// Every block finds the choice for itself (one warp over E logits); its warps then take (expert, row) pairs and hold gate
// and up of a row together.
#include "common/gate.cuh"
#include "common/staged.cuh"
#include "common/top_k.cuh"

// Grid: blocks. logits [E], x [n] → ids [K], weights [K], y [K, rows]; gate_out, up_out, activated [K, rows] or null.
// q8 as in norm_matmul.cu (per matrix); dynamic shared memory n + n/8 bytes where it is set.
extern "C" __global__ void __launch_bounds__(256)
    route_gate_up(gptr<const float> logits, gptr<const float> bias, gptr<int> ids, gptr<float> weights, int experts,
                  int experts_per_token, int gate, int renormalise, float scale, gptr<const float> x, int n, int rows,
                  int q8, int gate_format, gptr<const uint8_t> gate_w, unsigned long long gate_row_bytes,
                  unsigned long long gate_expert_bytes, int up_format, gptr<const uint8_t> up_w,
                  unsigned long long up_row_bytes, unsigned long long up_expert_bytes, gptr<float> gate_out,
                  gptr<float> up_out, gptr<float> activated, gptr<float> y) {
    SHARED_DYNAMIC(float, base);
    SHARED(int, chosen, MAX_EXPERTS_PER_TOKEN);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    if (warp == 0) {
        Route route = warp_route(logits, bias, experts, experts_per_token, gate, renormalise, scale);
        if (lane < experts_per_token) {
            chosen[lane] = route.id;
            if (blockIdx.x == 0) {
                ids[lane] = route.id;
                weights[lane] = route.weight;
            }
        }
    }
    StagedQ8 staged = staged_q8(base, n);
    if (q8) stage_q8(x, n, staged);
    __syncthreads();
    for (int i = blockIdx.x * warps + warp; i < experts_per_token * rows; i += gridDim.x * warps) {
        int id = chosen[i / rows], o = i % rows;
        float g = staged_dot(gate_format, gate_w + (id * gate_expert_bytes + o * gate_row_bytes), n, x, staged, q8, 0);
        float u = staged_dot(up_format, up_w + (id * up_expert_bytes + o * up_row_bytes), n, x, staged, q8, 0);
        if (lane == 0) {
            float a = silu(g);
            if (gate_out != nullptr) gate_out[i] = g;
            if (up_out != nullptr) up_out[i] = u;
            if (activated != nullptr) activated[i] = a;
            y[i] = a * u;
        }
    }
}
KERNEL(route_gate_up)
