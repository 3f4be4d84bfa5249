// SsmScan: mamba2's scan, token by token. For each head, with δ = softplus(dt + dt_bias): S ← e^(a·δ) · S + δ·x ⊗ B;
// out = S·C + d·x, S [P, N] of the sequence, 0 before position 0. A workgroup keeps ROWS rows of a head's S for the whole step,
// PARTS lanes a row, each with every PARTS-th element. Grid (P / ROWS, heads).
#include numbers
#include arena
#include softplus

struct Params {
    // [T, heads · P + 2 · groups · N]: x, B, C.
    xbc: u32,
    // [T, heads].
    dt: u32,
    positions: u32,
    y: u32,
    // [heads] in `smalls`.
    a: u32,
    d: u32,
    dt_bias: u32,
    heads: u32,
    head_dim: u32,
    groups: u32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

const PARTS: u32 = 16u;
const ROWS: u32 = LANES / PARTS;
const EACH: u32 = (STATE_SIZE + PARTS - 1u) / PARTS;

// B and C of a token, and the lanes' sums.
var<workgroup> of_token: array<vec2<f32>, STATE_SIZE>;
var<workgroup> part_sums: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = wg.y;
    let row = wg.x * ROWS + lane / PARTS;
    let part = lane % PARTS;
    let is_mine = row < p.head_dim;
    let is_fresh = arena[p.positions] == 0u;
    let width = p.heads * p.head_dim + 2u * p.groups * STATE_SIZE;
    let held = (head * p.head_dim + row) * STATE_SIZE;
    var s: array<f32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let at = part + i * PARTS;
        s[i] = 0.0;
        if (is_mine && !is_fresh && at < STATE_SIZE) {
            s[i] = bitcast<f32>(state[held + at]);
        }
    }
    for (var t = 0u; t < now.tokens; t++) {
        let b = p.xbc + t * width + p.heads * p.head_dim + head / (p.heads / p.groups) * STATE_SIZE;
        for (var i = lane; i < STATE_SIZE; i += LANES) {
            of_token[i] = vec2<f32>(load(b + i), load(b + p.groups * STATE_SIZE + i));
        }
        workgroupBarrier();
        let delta = softplus(load(p.dt + t * p.heads + head) + small(p.dt_bias + head));
        let decay = exp(small(p.a + head) * delta);
        var x = 0.0;
        if (is_mine) {
            x = load(p.xbc + t * width + head * p.head_dim + row);
        }
        var sum = 0.0;
        for (var i = 0u; i < EACH; i++) {
            let at = part + i * PARTS;
            if (at < STATE_SIZE) {
                s[i] = decay * s[i] + delta * x * of_token[at].x;
                sum += s[i] * of_token[at].y;
            }
        }
        part_sums[lane] = sum;
        workgroupBarrier();
        if (is_mine && part == 0u) {
            for (var i = 1u; i < PARTS; i++) {
                sum += part_sums[lane + i];
            }
            store(p.y + (t * p.heads + head) * p.head_dim + row, sum + small(p.d + head) * x);
        }
    }
    for (var i = 0u; i < EACH; i++) {
        let at = part + i * PARTS;
        if (is_mine && at < STATE_SIZE) {
            state[held + at] = bitcast<u32>(s[i]);
        }
    }
}
