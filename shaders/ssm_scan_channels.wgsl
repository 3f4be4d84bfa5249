// SsmScan where each element decays by itself, mamba1: for each channel, with δ = softplus(dt + dt_bias):
// s ← e^(a·δ) ∘ s + δ·x · B; out = s·C + d·x, s [N] of the sequence, 0 before position 0. A workgroup keeps the states of CHANNELS
// channels for the whole step, PARTS lanes a channel, each with every PARTS-th element. Grid (channels / CHANNELS).
#include numbers
#include arena
#include softplus

struct Params {
    // [T, channels + 2 · N]: x, B, C.
    xbc: u32,
    // [T, channels].
    dt: u32,
    positions: u32,
    y: u32,
    // [channels, N] in `smalls`.
    a: u32,
    // [channels] in `smalls`.
    d: u32,
    dt_bias: u32,
    channels: u32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

const PARTS: u32 = 16u;
const CHANNELS: u32 = LANES / PARTS;
const EACH: u32 = (STATE_SIZE + PARTS - 1u) / PARTS;

var<workgroup> part_sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let channel = wg.x * CHANNELS + lane / PARTS;
    let part = lane % PARTS;
    let is_mine = channel < p.channels;
    let is_fresh = arena[p.positions] == 0u;
    let width = p.channels + 2u * STATE_SIZE;
    var s: array<f32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let at = part + i * PARTS;
        s[i] = 0.0;
        if (is_mine && !is_fresh && at < STATE_SIZE) {
            s[i] = bitcast<f32>(state[channel * STATE_SIZE + at]);
        }
    }
    for (var t = 0u; t < now.tokens; t++) {
        let b = p.xbc + t * width + p.channels;
        var delta = 0.0;
        var x = 0.0;
        if (is_mine) {
            delta = softplus(load(p.dt + t * p.channels + channel) + small(p.dt_bias + channel));
            x = load(p.xbc + t * width + channel);
        }
        var sum = 0.0;
        for (var i = 0u; i < EACH; i++) {
            let at = part + i * PARTS;
            if (is_mine && at < STATE_SIZE) {
                let decay = exp(small(p.a + channel * STATE_SIZE + at) * delta);
                s[i] = decay * s[i] + delta * x * load(b + at);
                sum += s[i] * load(b + STATE_SIZE + at);
            }
        }
        part_sums[lane] = sum;
        workgroupBarrier();
        if (is_mine && part == 0u) {
            for (var i = 1u; i < PARTS; i++) {
                sum += part_sums[lane + i];
            }
            store(p.y + t * p.channels + channel, sum + small(p.d + channel) * x);
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < EACH; i++) {
        let at = part + i * PARTS;
        if (is_mine && at < STATE_SIZE) {
            state[channel * STATE_SIZE + at] = bitcast<u32>(s[i]);
        }
    }
}
