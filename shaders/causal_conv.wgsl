// CausalConv: y[t, c] = act(Σ_j w[c, j] · x[t − (k−1) + j, c] (+ b[c])), the oldest term first. Inputs of earlier steps lie in the
// sequence's state [C, k−1], oldest first; before position 0 there are none. A workgroup has CHANNELS channels to itself:
// its lanes take the tokens in turn, and once all have read the state it is changed. Grid (C / CHANNELS).
#include numbers
#include arena
#include activate

struct Params {
    x: u32,
    positions: u32,
    y: u32,
    channels: u32,
    // [C, k] and [C], or NONE, in `smalls`.
    weight: u32,
    bias: u32,
    // k − 1.
    kept: u32,
    activation: u32,
    alpha: f32,
    limit: f32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

// Input i of channel c, counting from the oldest that the state holds.
fn conv_input(i: u32, c: u32) -> f32 {
    if (i >= p.kept) {
        return load(p.x + (i - p.kept) * p.channels + c);
    }
    return select(bitcast<f32>(state[c * p.kept + i]), 0.0, arena[p.positions] == 0u);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let c = wg.x * CHANNELS + lane % CHANNELS;
    let is_mine = c < p.channels;
    for (var t = lane / CHANNELS; is_mine && t < now.tokens; t += LANES / CHANNELS) {
        var sum = 0.0;
        for (var j = 0u; j <= p.kept; j++) {
            sum = fma(small(p.weight + c * (p.kept + 1u) + j), conv_input(t + j, c), sum);
        }
        if (p.bias != NONE) {
            sum += small(p.bias + c);
        }
        store(p.y + t * p.channels + c, activate(sum));
    }
    storageBarrier();
    if (is_mine && lane < CHANNELS) {
        // Ascending: an input moves to where one that is read no more lay.
        for (var j = 0u; j < p.kept; j++) {
            state[c * p.kept + j] = bitcast<u32>(conv_input(now.tokens + j, c));
        }
    }
}
