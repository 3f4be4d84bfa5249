// Embed: rows of the token table, decoded. ids [T] → y [T, n] f32; table [vocab, n] in `format`.
#include "common/formats.cuh"

template <class F> DEVICE void decode_group(gptr<const uint8_t> row, int g, gptr<float> y) {
    Group32 w = F::group(row, g);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++)
            y[32 * g + 4 * i + j] = w.scale[i >> 2] * float(byte_of(w.code[i], j)) - w.minimum[i >> 2];
}
template <class F> DEVICE void decode_floats(gptr<const uint8_t> row, int g, int n, gptr<float> y) {
    for (int i = 32 * g; i < n && i < 32 * g + 32; i++) y[i] = F::at(row, i);
}

// Grid: (ceil(groups / threads), T), groups = ceil(n / 32); one thread a group of 32. An id outside the table gives NaN.
extern "C" __global__ void embed(int format, gptr<const uint8_t> table, unsigned long long row_bytes,
                                 gptr<const int> ids, gptr<float> y, int n, int vocab) {
    int g = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (g * 32 >= n) return;
    int id = ids[t];
    gptr<float> out = y + t * n;
    if (id < 0 || id >= vocab) {
        for (int i = 32 * g; i < n && i < 32 * g + 32; i++) out[i] = quiet_nan();
        return;
    }
    gptr<const uint8_t> row = table + id * row_bytes;
    if (format <= FORMAT_BF16) {
#define CALL(F) decode_floats<F>(row, g, n, out)
        SWITCH_FLOAT_FORMAT(format, CALL)
#undef CALL
    } else {
#define CALL(F) decode_group<F>(row, g, out)
        SWITCH_BLOCK_FORMAT(format, CALL)
#undef CALL
    }
}
KERNEL(embed)
