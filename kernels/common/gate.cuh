// The gate's function in feed-forward blocks.
#pragma once
#include "prelude.cuh"

DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }
