// A router's norm and logits, with the logit of a shared expert's gate; beside them gate, up and activation of the same row,
// under the router's norm or one of its own: a shared expert's, or an MLP's beside the experts. What makes the row may stand in
// front (common/staged.cuh), and it may be normed a third time for others.
//
// The first blocks take logits, two rows a warp at a time, the next gate and up, the last the further norm: each has one norm.
#include "common/gated.cuh"
#include "common/staged.cuh"

struct LogitRows {
    int format;
    gptr<const uint8_t> w;
    unsigned long long row_bytes;
    aptr<const float> bias;
    float scale;
    aptr<float> y;
    int rows;
};

DEVICE void store_logit(const LogitRows (&l)[2], int o, float v) {
    bool second = o >= l[0].rows;
    if (second) o -= l[0].rows;
    v *= second ? l[1].scale : l[0].scale;
    aptr<const float> bias = second ? l[1].bias : l[0].bias;
    if (bias != nullptr) v += bias[o];
    (second ? l[1].y : l[0].y)[o] = v;
}

#define LOGITS(k)                                                                                                            \
    int format##k, gptr<const uint8_t> w##k, unsigned long long row_bytes##k, aptr<const float> bias##k, float scale##k,      \
        aptr<float> y##k, int rows##k
#define TAKE(k)                                                                                                              \
    l[k].format = format##k, l[k].w = w##k, l[k].row_bytes = row_bytes##k, l[k].bias = bias##k, l[k].scale = scale##k,        \
    l[k].y = y##k, l[k].rows = rows##k

// Grid: logit_blocks + pair_blocks, and one more where further_normed [n] is not null; 256 threads. x and what is in front of it as
// in norm_matmul.cu, and so are logits without rows. own: gate and up have the norm own_w, else the router's. normed, own_normed
// [n], gate_out, up_out, activated [rows] or null. n % 4 = 0, n ≤ 8192. stage: of the logits' row, and of gate and up's. Dynamic
// shared memory for the larger of the two as in norm_matmul.cu.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(2, 2, 2))
    router_gate_up(aptr<const float> x, aptr<const float> post_w, float post_eps, aptr<const float> residual,
                   aptr<float> post_normed, aptr<float> post_sum, aptr<const float> w, aptr<const float> norm_bias, float eps,
                   int centred, aptr<float> normed, int own, aptr<const float> own_w, aptr<const float> own_bias,
                   float own_eps, int own_centred, aptr<float> own_normed, aptr<const float> further_w,
                   aptr<const float> further_bias, float further_eps, int further_centred, aptr<float> further_normed, int n,
                   int logit_stage, int pair_stage, int logit_blocks, int pair_blocks, LOGITS(0), LOGITS(1), int gate_format,
                   gptr<const uint8_t> gate_w, unsigned long long gate_row_bytes, int up_format, gptr<const uint8_t> up_w,
                   unsigned long long up_row_bytes, int activation, float alpha, float limit, aptr<float> gate_out,
                   aptr<float> up_out, aptr<float> activated, aptr<float> y, int rows) {
    SHARED_DYNAMIC(float, base);
    LogitRows l[2];
    TAKE(0), TAKE(1);
    int lane = threadIdx.x & 31, warps = blockDim.x >> 5, block = blockIdx.x, all = rows0 + rows1;
    bool of_logits = block < logit_blocks, of_pairs = !of_logits && block < logit_blocks + pair_blocks;
    int first = (of_logits ? block : block - logit_blocks) * warps + (threadIdx.x >> 5);
    int stride = (of_logits ? logit_blocks : pair_blocks) * warps;
    int items = of_logits ? (all + 1) / 2 : of_pairs ? rows : 0;
    if (of_pairs && first < items) {
        warp_prefetch(gate_w + first * gate_row_bytes, gate_row_bytes);
        warp_prefetch(up_w + first * up_row_bytes, up_row_bytes);
    }
    wait_for_previous();
    aptr<float> none = aptr<float>(nullptr);
    RowNorm norm;
    norm.w = of_logits || (of_pairs && !own) ? w : of_pairs ? own_w : further_w;
    norm.b = of_logits || (of_pairs && !own) ? norm_bias : of_pairs ? own_bias : further_bias;
    norm.eps = of_logits || (of_pairs && !own) ? eps : of_pairs ? own_eps : further_eps;
    norm.centred = of_logits || (of_pairs && !own) ? centred : of_pairs ? own_centred : further_centred;
    aptr<float> copy = block == 0 ? normed : own && block == logit_blocks ? own_normed : none;
    if (!of_logits && !of_pairs) copy = further_normed;
    PostNorm post;
    post.w = post_w;
    post.residual = residual;
    post.eps = post_eps;
    post.normed = block == 0 ? post_normed : none;
    post.sum = block == 0 ? post_sum : none;
    int stage = of_logits ? logit_stage : of_pairs ? pair_stage : 0;
    StagedQ8 staged = stage_normed(x, post, norm, n, stage, base, copy);
    sptr<float> row = base;
    for (int i = first; i < items; i += stride) {
        int o[2] = {2 * i, 2 * i + 1 < all ? 2 * i + 1 : 2 * i};
        int format[2] = {gate_format, up_format};
        gptr<const uint8_t> pair[2] = {gate_w + i * gate_row_bytes, up_w + i * up_row_bytes};
        if (of_logits) {
#pragma unroll
            for (int k = 0; k < 2; k++) {
                bool second = o[k] >= rows0;
                format[k] = second ? format1 : format0;
                pair[k] = second ? w1 + (o[k] - rows0) * row_bytes1 : w0 + o[k] * row_bytes0;
            }
        }
        float acc[2];
        staged_pair(format[0], format[1], pair, n, row, staged, stage, lane, acc);
        float g = warp_sum(acc[0]), u = warp_sum(acc[1]);
        if (lane != 0) continue;
        if (of_logits) {
            store_logit(l, o[0], g);
            if (o[1] != o[0]) store_logit(l, o[1], u);
            continue;
        }
        float a, v = gated(activation, g, u, alpha, limit, a);
        if (gate_out != nullptr) gate_out[i] = g;
        if (up_out != nullptr) up_out[i] = u;
        if (activated != nullptr) activated[i] = a;
        y[i] = v;
    }
}
KERNEL(router_gate_up)
