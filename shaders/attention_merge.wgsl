// Joins the parts that attention.wgsl left: per token and head, Σ output · e^(max − M) / Σ sum · e^(max − M), M being the
// largest maximum. Grid (H, T); a lane takes output elements in turn.
#include numbers
#include arena

struct Params {
    parts: u32,
    y: u32,
    heads: u32,
    value_dim: u32,
    sinks: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (wg.y >= now.tokens) {
        return;
    }
    let out = wg.y * p.heads + wg.x;
    let stride = p.value_dim + 2u;
    let parts = p.parts + out * now.splits * stride;
    var largest = load(parts);
    for (var i = 1u; i < now.splits; i++) {
        largest = max(largest, load(parts + i * stride));
    }
    if (p.sinks != NONE) {
        largest = max(largest, small(p.sinks + wg.x));
    }
    var sum = 0.0;
    for (var i = 0u; i < now.splits; i++) {
        sum += load(parts + i * stride + 1u) * exp(load(parts + i * stride) - largest);
    }
    if (p.sinks != NONE) {
        sum += exp(small(p.sinks + wg.x) - largest);
    }
    for (var element = lane; element < p.value_dim; element += LANES) {
        var output = 0.0;
        for (var i = 0u; i < now.splits; i++) {
            output += load(parts + i * stride + 2u + element) * exp(load(parts + i * stride) - largest);
        }
        store(p.y + out * p.value_dim + element, output / sum);
    }
}
