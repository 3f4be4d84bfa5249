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
