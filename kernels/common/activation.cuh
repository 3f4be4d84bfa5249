// 8-bit activations, blocks of 32: scale = max|x| / 127, q = x · (127 / max|x|) rounded to nearest, ties to even.
// A block with a value that is not finite has scale NaN and q = 0, so that it stays visible in every product.
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
    if (amax == 0.0f) {
        scale = 0.0f;
        return 0;
    }
    scale = amax / 127.0f;
    float v = x * (127.0f / amax);
    // A subnormal maximum makes the factor infinite: 0 · ∞ counts as 0, the rest saturate.
    if (is_nan(v)) return 0;
    return __float2int_rn(fminf(fmaxf(v, -127.0f), 127.0f));
}
