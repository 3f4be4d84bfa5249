// A post-norm and what stands around it: y = scale · (residual + norm(x)), where x may be the sum of two rows, each under a norm of
// its own.
#include "common/activation.cuh"

constexpr int NORMS_FOURS = 8;

// The RMSNorm of a row of n in fours a thread; w null: 1; copy null: nowhere.
DEVICE void norm_fours(float4 (&v)[NORMS_FOURS], aptr<const float> w, float eps, int n, aptr<float> copy) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < NORMS_FOURS; j++) squares += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
#pragma unroll
    for (int j = 0; j < NORMS_FOURS; j++) {
        int i4 = threadIdx.x + j * 256;
        if (i4 >= n / 4) break;
        float4 g = w != nullptr ? cast<const float4>(w)[i4] : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        v[j] = make_float4(v[j].x * inverse * g.x, v[j].y * inverse * g.y, v[j].z * inverse * g.z, v[j].w * inverse * g.w);
        if (copy != nullptr) cast<float4>(copy)[i4] = v[j];
    }
}

DEVICE void load_fours(float4 (&v)[NORMS_FOURS], aptr<const float> x, int n) {
#pragma unroll
    for (int j = 0; j < NORMS_FOURS; j++) {
        int i4 = threadIdx.x + j * 256;
        v[j] = i4 < n / 4 ? cast<const float4>(x)[i4] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

// Grid: R, 256 threads. a, b, residual, y [R, n]; b null: x is a, and a_w and b_w are not read. sum, normed, added and both parts'
// norms [R, n] or null: what somebody reads on the way. n % 4 = 0, n ≤ 8192.
extern "C" __global__ void __launch_bounds__(256)
    norms_residual(aptr<const float> a, aptr<const float> a_w, float a_eps, aptr<float> a_normed, aptr<const float> b,
                   aptr<const float> b_w, float b_eps, aptr<float> b_normed, aptr<float> sum, aptr<const float> w, float eps,
                   aptr<float> normed, aptr<const float> residual, aptr<float> added, float scale, aptr<float> y, int n) {
    wait_for_previous();
    long long at = static_cast<long long>(blockIdx.x) * n;
    float4 v[NORMS_FOURS];
    load_fours(v, a + at, n);
    if (b != nullptr) {
        float4 other[NORMS_FOURS];
        load_fours(other, b + at, n);
        norm_fours(v, a_w, a_eps, n, a_normed != nullptr ? a_normed + at : a_normed);
        norm_fours(other, b_w, b_eps, n, b_normed != nullptr ? b_normed + at : b_normed);
#pragma unroll
        for (int j = 0; j < NORMS_FOURS; j++) {
            int i4 = threadIdx.x + j * 256;
            v[j] = make_float4(v[j].x + other[j].x, v[j].y + other[j].y, v[j].z + other[j].z, v[j].w + other[j].w);
            if (sum != nullptr && i4 < n / 4) cast<float4>(sum + at)[i4] = v[j];
        }
    }
    norm_fours(v, w, eps, n, normed != nullptr ? normed + at : normed);
#pragma unroll
    for (int j = 0; j < NORMS_FOURS; j++) {
        int i4 = threadIdx.x + j * 256;
        if (i4 >= n / 4) break;
        float4 r = cast<const float4>(residual + at)[i4];
        r = make_float4(r.x + v[j].x, r.y + v[j].y, r.z + v[j].z, r.w + v[j].w);
        if (added != nullptr) cast<float4>(added + at)[i4] = r;
        cast<float4>(y + at)[i4] = make_float4(r.x * scale, r.y * scale, r.z * scale, r.w * scale);
    }
}
KERNEL(norms_residual)
