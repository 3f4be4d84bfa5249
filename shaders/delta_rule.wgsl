// DeltaRule: the gated delta rule, token by token. For each value head, with q̂ = q / √(Σq² + eps) · scale and k̂ likewise without
// scale: S ← g · S; S ← S + k̂ ⊗ β·(v − Sᵀk̂); out = Sᵀq̂, S [dk, dv] of the sequence, 0 before position 0.
//
// A workgroup keeps 32 columns of a head's S for the whole step: a lane a column and every PARTS-th row. The sums over rows of a
// token are taken of S as it was, so that one exchange does for both: out_j = Σ q̂ᵢgᵢ·Sᵢⱼ + (q̂·k̂)·δⱼ. Grid (dv / 32, Hv).
// With `fused` it makes the gates, as delta_gates.wgsl does.
#include numbers
#include arena
#include lanes
#if fused
#include softplus
#include part b
#include part dt
#endif

struct Params {
    // [T, 2·Hk·dk + Hv·dv]: queries, keys, values.
    qkv: u32,
#if fused
    // What the gates are made of, and theirs in `smalls`: [Hv] and [Hv · decays]; the least logarithm of a decay, 0: none; both
    // gates where somebody reads them, or NONE.
#include part_params b
#include part_params dt
    a: u32,
    dt_bias: u32,
    bound: f32,
    beta: u32,
    decay_at: u32,
#else
    // [T, Hv] and [T, Hv · decays].
    beta: u32,
    decay_at: u32,
#endif
    positions: u32,
    y: u32,
    key_heads: u32,
    heads: u32,
    // 1: value head h reads key head h % Hk; 0: h / (Hv / Hk).
    tiled: u32,
    dv: u32,
    // 1, or dk.
    decays: u32,
    eps: f32,
    scale: f32,
}

@group(1) @binding(0) var<storage, read_write> state: array<u32>;

const COLUMNS: u32 = 32u;
const PARTS: u32 = LANES / COLUMNS;
const ROWS: u32 = (KEY_DIM + PARTS - 1u) / PARTS;

var<workgroup> queries: array<f32, KEY_DIM>;
var<workgroup> keys: array<f32, KEY_DIM>;
var<workgroup> decay: array<f32, KEY_DIM>;
// A lane's sums by the key and by the query.
var<workgroup> part_sums: array<vec2<f32>, LANES>;

// β of a token and head, and the decay of a row of its S; `keep` says that this lane writes them down.
#if fused
fn beta_of(token: u32, head: u32, keep: bool) -> f32 {
    let value = 1.0 / (1.0 + exp(-b_element(token, head, keep)));
    if (keep && p.beta != NONE) {
        store(p.beta + token * p.heads + head, value);
    }
    return value;
}

fn decay_of(token: u32, head: u32, row: u32, keep: bool) -> f32 {
    let i = head * p.decays + select(row, 0u, p.decays == 1u);
    let writes = keep && (p.decays > 1u || row == 0u);
    let x = dt_element(token, i, writes) + small(p.dt_bias + i);
    let a = small(p.a + head);
    var g = a * softplus(x);
    if (p.bound < 0.0) {
        g = p.bound / (1.0 + exp(-a * x));
    }
    let value = exp(g);
    if (writes && p.decay_at != NONE) {
        store(p.decay_at + token * p.heads * p.decays + i, value);
    }
    return value;
}
#else
fn beta_of(token: u32, head: u32, keep: bool) -> f32 {
    return load(p.beta + token * p.heads + head);
}

fn decay_of(token: u32, head: u32, row: u32, keep: bool) -> f32 {
    return load(p.decay_at + (token * p.heads + head) * p.decays + select(row, 0u, p.decays == 1u));
}
#endif

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    let head = wg.y;
    let column = wg.x * COLUMNS + lane.index % COLUMNS;
    let part = lane.index / COLUMNS;
    let is_mine = column < p.dv;
    let is_fresh = arena[p.positions] == 0u;
    let key_head = select(head / (p.heads / p.key_heads), head % p.key_heads, p.tiled == 1u);
    let width = 2u * p.key_heads * KEY_DIM + p.heads * p.dv;
    let held = head * KEY_DIM * p.dv + column;
    var s: array<f32, ROWS>;
    for (var i = 0u; i < ROWS; i++) {
        let row = part + i * PARTS;
        s[i] = 0.0;
        if (is_mine && !is_fresh && row < KEY_DIM) {
            s[i] = bitcast<f32>(state[held + row * p.dv]);
        }
    }
    for (var t = 0u; t < now.tokens; t++) {
        let q = p.qkv + t * width + key_head * KEY_DIM;
        let k = q + p.key_heads * KEY_DIM;
        var squares = vec4<f32>(0.0);
        for (var i = lane.index; i < KEY_DIM; i += LANES) {
            let a = load(q + i);
            let b = load(k + i);
            squares += vec4<f32>(a * a, b * b, a * b, 0.0);
        }
        // Behind this nobody reads the last token's rows any more.
        squares = sum_lanes4(lane, squares);
        let of_q = p.scale / sqrt(squares.x + p.eps);
        let of_k = 1.0 / sqrt(squares.y + p.eps);
        for (var i = lane.index; i < KEY_DIM; i += LANES) {
            queries[i] = load(q + i) * of_q;
            keys[i] = load(k + i) * of_k;
            decay[i] = decay_of(t, head, i, wg.x == 0u);
        }
        workgroupBarrier();
        var sums = vec2<f32>(0.0);
        for (var i = 0u; i < ROWS; i++) {
            let row = part + i * PARTS;
            if (row < KEY_DIM) {
                s[i] *= decay[row];
                sums += s[i] * vec2<f32>(keys[row], queries[row]);
            }
        }
        part_sums[lane.index] = sums;
        workgroupBarrier();
        sums = vec2<f32>(0.0);
        for (var i = 0u; i < PARTS; i++) {
            sums += part_sums[lane.index % COLUMNS + i * COLUMNS];
        }
        var delta = 0.0;
        if (is_mine) {
            let v = load(p.qkv + t * width + 2u * p.key_heads * KEY_DIM + head * p.dv + column);
            delta = beta_of(t, head, lane.index == 0u && wg.x == 0u) * (v - sums.x);
            if (part == 0u) {
                store(p.y + (t * p.heads + head) * p.dv + column, sums.y + squares.z * of_q * of_k * delta);
            }
        }
        for (var i = 0u; i < ROWS; i++) {
            let row = part + i * PARTS;
            if (row < KEY_DIM) {
                s[i] += keys[row] * delta;
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        let row = part + i * PARTS;
        if (is_mine && row < KEY_DIM) {
            state[held + row * p.dv] = bitcast<u32>(s[i]);
        }
    }
}
