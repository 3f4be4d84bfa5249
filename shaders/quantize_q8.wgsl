// The 8-bit activations of a matmul, blocks of 32 (graph/quant defines them): scale = max|x| / 127, q = x · (127 / max|x|)
// rounded to nearest, ties to even; a block with a NaN or an infinity gets the scale NaN and q = 0.
// x [rows, cols] → for each row cols / 4 words of q, then cols / 32 scales. One lane a block; grid (blocks / LANES).
#include numbers
#include arena
#include packed

struct Params {
    x: u32,
    y: u32,
    cols: u32,
    axis: u32,
    rows_each: u32,
}

// 127 / f32::MAX.
const SMALLEST_AMAX_BITS: u32 = 0x02fe0001u;

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
    var largest = 0u;
    for (var i = 0u; i < 32u; i++) {
        // Without the sign, the order of the bits is the order of the numbers, infinity and NaN last.
        largest = max(largest, arena[x + i] & 0x7fffffffu);
    }
    let finite = largest < 0x7f800000u;
    // A block so small that 127 / max|x| would overflow counts as zero.
    let amax = bitcast<f32>(select(0u, largest, finite && largest >= SMALLEST_AMAX_BITS));
    var inverse = 0.0;
    if (amax > 0.0) {
        inverse = divide(127.0, amax);
    }
    for (var i = 0u; i < 8u; i++) {
        let at = x + i * 4u;
        let values = vec4<f32>(load(at), load(at + 1u), load(at + 2u), load(at + 3u)) * inverse;
        arena[y + block * 8u + i] = select(0u, pack_bytes(round(values)), amax > 0.0);
    }
    arena[y + p.cols / 4u + block] = select(QUIET_NAN_BITS, bitcast<u32>(divide(amax, 127.0)), finite);
}
