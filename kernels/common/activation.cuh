// 8-bit activations, blocks of 32: scale = max|x| / 127, q = x · (127 / max|x|) rounded to nearest, ties to even.
// A block with a value that is not finite has scale NaN and q = 0, so that it stays visible in every product; one whose
// maximum is 0, or so small that 127 / max overflows, is zero.
#pragma once
#include "prelude.cuh"

// One lane holds one element of the block; all lanes get the scale, each its own q.
DEVICE int quantize_lane_q8(float x, float &scale) {
    float amax = warp_max(fabsf(x));
    bool finite = __all_sync(FULL_WARP, is_finite(x)) != 0;
    if (!finite) {
        scale = quiet_nan();
        return 0;
    }
    float inverse = 127.0f / amax;
    if (!is_finite(inverse)) {
        scale = 0.0f;
        return 0;
    }
    scale = amax / 127.0f;
    return __float2int_rn(x * inverse);
}

// The same with four elements a lane, eight lanes a block: packed q of the lane's own, the block's scale.
DEVICE int quantize_quad_q8(float4 x, float &scale) {
    float amax = fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
    amax = warp_max(amax, 8);
    bool mine = is_finite(x.x) && is_finite(x.y) && is_finite(x.z) && is_finite(x.w);
    uint32_t finite = __ballot_sync(FULL_WARP, mine) >> (threadIdx.x & 24);
    if ((finite & 0xffu) != 0xffu) {
        scale = quiet_nan();
        return 0;
    }
    float inverse = 127.0f / amax;
    if (!is_finite(inverse)) {
        scale = 0.0f;
        return 0;
    }
    scale = amax / 127.0f;
    uint32_t a = uint32_t(__float2int_rn(x.x * inverse)) & 0xffu, b = uint32_t(__float2int_rn(x.y * inverse)) & 0xffu;
    uint32_t c = uint32_t(__float2int_rn(x.z * inverse)) & 0xffu, d = uint32_t(__float2int_rn(x.w * inverse)) & 0xffu;
    return int(a | (b << 8) | (c << 16) | (d << 24));
}
