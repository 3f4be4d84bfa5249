// A part of each head of a row, which is read where it lies.
#pragma once
#include "prelude.cuh"

// Element i of it is that of x at i / len · step + from + i % len; len 0: at i. copy [elements] or null: where somebody reads it.
struct Part {
    aptr<const float> x;
    int len, step, from;
    aptr<float> copy;
};

DEVICE Part part_of(aptr<const float> x, int len, int step, int from, aptr<float> copy) {
    Part p;
    p.x = x;
    p.len = len;
    p.step = step;
    p.from = from;
    p.copy = copy;
    return p;
}

// Element i; `keeps` says that this thread writes the copy of it.
DEVICE float part_element(const Part &p, int i, bool keeps) {
    float v = p.x[p.len == 0 ? i : i / p.len * p.step + p.from + i % p.len];
    if (keeps && p.copy != nullptr) p.copy[i] = v;
    return v;
}
