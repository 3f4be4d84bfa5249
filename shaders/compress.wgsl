// Compress: a, b [T, c·d] → at the last position of each window of `ratio`, of each channel Σ softmax(b + bias)·a over the window; 0 at
// the other positions: [T, d]. With overlap c is 2, and the window before takes part with the first d channels. What positions
// brought lies in the sequence's state [d, 2 · slots], of each channel all a, then all b: with overlap 2 · ratio places of the
// first d channels, then `ratio` of the last d; else `ratio` places. One lane a channel, which walks the tokens in order.
#include numbers
#include arena

struct Params {
    a: u32,
    b: u32,
    positions: u32,
    // [ratio, c·d] in `smalls`.
    bias: u32,
    y: u32,
    width: u32,
    ratio: u32,
    overlap: u32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

// The largest b so far, Σ of e^(b − largest)·a and of e^(b − largest).
var<private> largest: f32;
var<private> sum: f32;
var<private> total: f32;

fn take(a: f32, b: f32) {
    if (b > largest) {
        let shrink = exp(largest - b);
        sum *= shrink;
        total *= shrink;
        largest = b;
    }
    let share = exp(b - largest);
    sum = fma(share, a, sum);
    total += share;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let channel = wg.x * LANES + lane;
    if (channel >= p.width) {
        return;
    }
    let parts = 1u + p.overlap;
    let slots = select(1u, 3u, p.overlap == 1u) * p.ratio;
    let own = 2u * p.ratio * p.overlap;
    let values = channel * 2u * slots;
    let weights = values + slots;
    for (var t = 0u; t < now.tokens; t++) {
        let position = arena[p.positions + t];
        let in_window = position % p.ratio;
        for (var part = 0u; part < parts; part++) {
            let is_before = p.overlap == 1u && part == 0u;
            let slot = select(own + in_window, position % (2u * p.ratio), is_before);
            let column = part * p.width + channel;
            let at = t * parts * p.width + column;
            state[values + slot] = arena[p.a + at];
            let weight = load(p.b + at) + small(p.bias + in_window * parts * p.width + column);
            state[weights + slot] = bitcast<u32>(weight);
        }
        var out = 0.0;
        if (in_window + 1u == p.ratio) {
            let first = position + 1u - p.ratio;
            largest = -3.0e38;
            sum = 0.0;
            total = 0.0;
            if (p.overlap == 1u && first > 0u) {
                for (var i = 0u; i < p.ratio; i++) {
                    let slot = (first - p.ratio + i) % (2u * p.ratio);
                    take(bitcast<f32>(state[values + slot]), bitcast<f32>(state[weights + slot]));
                }
            }
            for (var i = 0u; i < p.ratio; i++) {
                take(bitcast<f32>(state[values + own + i]), bitcast<f32>(state[weights + own + i]));
            }
            out = sum / total;
        }
        store(p.y + t * p.width + channel, out);
    }
}
