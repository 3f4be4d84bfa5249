// HyperConnect: x [T, n·D], y [T, D], post [T, n], comb [T, n·n] → x'_k = post_k·y + Σ_j comb_jk·x_j: [T, n·D]. One lane an element of
// a stream; grid (D / LANES, T, n).
#include numbers
#include arena

struct Params {
    x: u32,
    y: u32,
    post: u32,
    comb: u32,
    out: u32,
    width: u32,
    streams: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wg.x * LANES + lane;
    if (i >= p.width || wg.y >= now.tokens) {
        return;
    }
    let row = wg.y * p.streams;
    var sum = load(p.post + row + wg.z) * load(p.y + wg.y * p.width + i);
    for (var j = 0u; j < p.streams; j++) {
        sum = fma(load(p.comb + (row + j) * p.streams + wg.z), load(p.x + (row + j) * p.width + i), sum);
    }
    store(p.out + (row + wg.z) * p.width + i, sum);
}
