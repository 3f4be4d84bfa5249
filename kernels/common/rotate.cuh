// One element of a head after RoPE.
#pragma once
#include "prelude.cuh"

// x: the head's d elements. Half pairing: (i, i + dims/2); interleaved: (2i, 2i + 1). A position outside the table gives
// NaN.
template <class X>
DEVICE float rotated(X x, int i, int position, aptr<const float> table, int dims, int interleaved, int table_rows) {
    if (i >= dims) return x[i];
    if (position < 0 || position >= table_rows) return quiet_nan();
    int half = dims / 2;
    int pair = interleaved ? i >> 1 : (i < half ? i : i - half);
    int a = interleaved ? 2 * pair : pair, b = interleaved ? a + 1 : pair + half;
    float2 t = cast<const float2>(table)[position * half + pair]; // cos, sin
    return i == a ? x[a] * t.x - x[b] * t.y : x[b] * t.x + x[a] * t.y;
}
