// Embed: rows of the token table, decoded, times scale. ids [T] → y [T, n] f32; table [vocab, n] in `format`.
#include "common/formats.cuh"

// Grid: (ceil(groups / threads), T), groups = ceil(n / 32); one thread a group of 32. An id outside the table gives NaN.
extern "C" __global__ void embed(int format, gptr<const uint8_t> table, unsigned long long row_bytes,
                                 aptr<const int> ids, aptr<float> y, int n, int vocab,
                                 float scale) {
    wait_for_previous();
    int g = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (g * 32 >= n) return;
    int id = ids[t];
    aptr<float> out = y + t * n;
    if (id < 0 || id >= vocab) {
        for (int i = 32 * g; i < n && i < 32 * g + 32; i++) out[i] = quiet_nan();
        return;
    }
    gptr<const uint8_t> row = table + id * row_bytes;
    if (format <= FORMAT_BF16) {
        for (int i = 32 * g; i < n && i < 32 * g + 32; i++) out[i] = scale * decode_float(format, row, i);
        return;
    }
    Group32 w = decode_group(format, row, n, g);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++)
            out[32 * g + 4 * i + j] = scale * (w.scale[i >> 2] * float(byte_of(w.code[i], j)) - w.minimum[i >> 2]);
}
KERNEL(embed)
