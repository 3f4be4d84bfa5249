// Which cached positions a query sees.
#pragma once
#include "prelude.cuh"

// The first position that a query at `position` sees, of those up to its own: the last `window` of them (0: no window), and
// those of its own chunk of positions (0: no chunks).
DEVICE int first_visible(int position, int window, int chunk) {
    int of_window = window > 0 && position >= window ? position + 1 - window : 0;
    int of_chunk = chunk > 0 ? position / chunk * chunk : 0;
    return of_window > of_chunk ? of_window : of_chunk;
}
