// The 8-bit activations of a matmul: x [rows, cols] → for each row cols / 4 words of signed bytes, then cols / 32 scales.
// One lane a block; grid (blocks / LANES).
#include numbers
#include arena
#include packed
#include quantize_block

struct Params {
    x: u32,
    y: u32,
    cols: u32,
    axis: u32,
    rows_each: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {
    let blocks = p.cols / 32u;
    let index = (wg.y * grid.x + wg.x) * LANES + lane;
    let row = index / blocks;
    let block = index % blocks;
    if (row >= axis_rows(p.axis, p.rows_each)) {
        return;
    }
    let x = p.x + row * p.cols + block * 32u;
    let y = p.y + row * (p.cols / 4u + blocks);
    let quantized = quantize_block(load_block(x));
    for (var i = 0u; i < 8u; i++) {
        arena[y + block * 8u + i] = quantized.q[i];
    }
    arena[y + p.cols / 4u + block] = quantized.scale_bits;
}
