// NVFP4, blocks of 64 in sub-blocks of 16: value = scale / 2 · table[q], the table being E2M1 doubled, the scale an E4M3
// without sign. Nine words a block, as in the file: four scales, then eight bytes a sub-block, low nibbles first.
#include table_mxfp4

fn $W_quants(row: u32, group: u32) -> vec4<u32> {
    let at = row + (group >> 2u) * 9u + 1u + 2u * (group & 3u);
    let a = $W[at];
    let b = $W[at + 1u];
    return vec4<u32>(mxfp4_values(a), mxfp4_values(b), mxfp4_values(a >> 4u), mxfp4_values(b >> 4u));
}

fn $W_scale(row: u32, group: u32) -> vec2<f32> {
    let bits = ($W[row + (group >> 2u) * 9u] >> (8u * (group & 3u))) & 0xffu;
    let e = (bits >> 3u) & 15u;
    // (8 + m) · 2^(e − 11), below e = 1 m · 2^−10; the NaN counts as 0.
    let m = (bits & 7u) + select(8u, 0u, e == 0u);
    let power = bitcast<f32>((max(e, 1u) + 116u) << 23u);
    return vec2<f32>(select(f32(m) * power, 0.0, bits == 0x7fu), 0.0);
}
