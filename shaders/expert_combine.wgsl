// ExpertCombine: y [T, K, D], weights [T, K] → Σ_k weight_k · y_k, k ascending: [T, D]. One lane an element.
#include numbers
#include arena

struct Params {
    x: u32,
    weights: u32,
    y: u32,
    width: u32,
    experts_per_token: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wg.x * LANES + lane;
    if (i >= p.width || wg.y >= now.tokens) {
        return;
    }
    var sum = 0.0;
    for (var k = 0u; k < p.experts_per_token; k++) {
        let choice = wg.y * p.experts_per_token + k;
        sum += load(p.weights + choice) * load(p.x + choice * p.width + i);
    }
    store(p.y + wg.y * p.width + i, sum);
}
