// All between the products of latent attention and the attention, for a few tokens: a query head is, with `fused`, its rows of a
// product of a normed latent, or lies there; what it becomes is its `nope` part through its head's matrix, then its rotated `pe`
// part, times the factor of the position. The key is another latent normed, then a rotated part, and goes to the cache. Every
// workgroup makes its head's query for itself and computes ROWS outputs; one behind the heads makes the key. Grid (RANK / ROWS,
// H + 1, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include kv_write_unit state
#include pairs
#if fused
#include decode query
#endif
#include decode key_w
#include activations
#include normed_input
#if fused
#include staged
#include dot query
#include rows query
#endif
#if last_f32
#include plain_dot key_w
#else
#include dot key_w
#endif

struct Params {
    // With `fused` the latent of the queries and its norm; else x alone: the queries.
#include normed_params
    heads: u32,
#if fused
    // The first row of the product's matrix; the queries, where somebody reads them, or NONE.
    query_first: u32,
    query_row_words: u32,
    query_blocks: u32,
    query_y: u32,
#endif
    // Where both parts begin in a query.
    nope_from: u32,
    pe_from: u32,
    // Both parts, the rotated one, the other through its matrix, and both side by side in front of the factor, where somebody reads
    // them; or NONE.
    nope_y: u32,
    pe_y: u32,
    turned: u32,
    absorbed: u32,
    joined: u32,
    y: u32,
    // The first head's first row, and the rows of a head in the tensor.
    key_first: u32,
    key_head_rows: u32,
    key_w_row_words: u32,
    key_w_blocks: u32,
    // Of the factor; length 0: none.
    factor_scale: f32,
    length: u32,
    offset: u32,
    positions: u32,
    // cos and sin of the step's positions, pairs that are turned, whether they lie side by side.
    table: u32,
    pairs: u32,
    interleaved: u32,
    // The key's latent, its norm's weights and eps; the part that is rotated; the normed latent and the rotated part where somebody
    // reads them, or NONE; both, from where they go to the cache.
    c: u32,
    c_norm: u32,
    c_eps: f32,
    c_normed: u32,
    k_pe: u32,
    k_turned: u32,
    k_joined: u32,
    slots: u32,
    capacity: u32,
}

#if fused
@group(0) @binding(4) var<storage, read> query: array<u32>;
@group(0) @binding(5) var<storage, read> key_w: array<u32>;
#else
@group(0) @binding(4) var<storage, read> key_w: array<u32>;
#endif
@group(1) @binding(0) var<storage, read_write> state: array<u32>;

const WIDTH: u32 = RANK + PE;

// A query of HEAD elements.
var<workgroup> head: array<f32, HEAD>;

// The part of the query that its matrix meets, in 8 bits; or as it is, which `last_f32` says where others are rounded.
#if last_f32
#else
#if q8
var<workgroup> nope_q: array<vec4<u32>, NOPE / 16u>;
var<workgroup> nope_scales: array<f32, NOPE / 32u>;
#endif
#endif

fn nope_value(at: u32) -> f32 {
    if (at >= NOPE) {
        return 0.0;
    }
#if last_f32
    return head[p.nope_from + at];
#else
#if round_f16
    return f16_to_f32(f32_to_f16(head[p.nope_from + at]));
#else
    return head[p.nope_from + at];
#endif
#endif
}

fn nope_four(at: u32) -> vec4<f32> {
    return vec4<f32>(nope_value(at), nope_value(at + 1u), nope_value(at + 2u), nope_value(at + 3u));
}

fn nope_values(group: u32) -> mat4x4<f32> {
    let at = group * 16u;
    return mat4x4<f32>(nope_four(at), nope_four(at + 4u), nope_four(at + 8u), nope_four(at + 12u));
}

// Keeps it. In uniform control flow.
fn stage_nope(lane: Lane) {
#if last_f32
#else
#if q8
    for (var block = lane.index; block < NOPE / 32u; block += LANES) {
        var values: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            values[i] = nope_four(block * 32u + i * 4u);
        }
        let quantized = quantize_block(values);
        nope_q[block * 2u] = vec4<u32>(quantized.q[0], quantized.q[1], quantized.q[2], quantized.q[3]);
        nope_q[block * 2u + 1u] = vec4<u32>(quantized.q[4], quantized.q[5], quantized.q[6], quantized.q[7]);
        nope_scales[block] = bitcast<f32>(quantized.scale_bits);
    }
    workgroupBarrier();
#endif
#endif
}

// A group of it times four rows of its matrix.
fn key_dots(row0: u32, row1: u32, row2: u32, row3: u32, group: u32) -> vec4<f32> {
#if last_f32
    let x = nope_values(group);
    return vec4<f32>(key_w_plain_dot(row0, group, x), key_w_plain_dot(row1, group, x), key_w_plain_dot(row2, group, x),
        key_w_plain_dot(row3, group, x));
#else
#if q8
    let q = nope_q[group];
    let sum = sum_bytes(q.x) + sum_bytes(q.y) + sum_bytes(q.z) + sum_bytes(q.w);
    let a = Activations(q, nope_scales[group >> 1u], f32(sum));
#else
    let a = Activations(nope_values(group));
#endif
    return vec4<f32>(key_w_dot(row0, group, a), key_w_dot(row1, group, a), key_w_dot(row2, group, a),
        key_w_dot(row3, group, a));
#endif
}

fn put(to: u32, at: u32, value: f32) {
    if (to != NONE) {
        store(to + at, value);
    }
}

// The token's key, into the cache. In uniform control flow.
fn make_key(lane: Lane, token: u32) {
    source = NormedRow(p.c, RANK, p.c_norm, NONE, 0u, p.c_eps, p.c_normed);
    find_factors(lane, token);
    keep_row(lane, token, false, true);
    let key = p.k_joined + token * WIDTH;
    for (var i = lane.index; i < RANK; i += LANES) {
        store(key + i, input_value(i));
    }
    for (var i = lane.index; i < PE / 2u; i += LANES) {
        let places = pair_places(i);
        let from_pe = p.k_pe + token * PE;
        var pair = vec2<f32>(load(from_pe + places.x), load(from_pe + places.y));
        if (places.z == 1u) {
            pair = turn(pair, p.table + 2u * (token * p.pairs + i));
        }
        store(key + RANK + places.x, pair.x);
        store(key + RANK + places.y, pair.y);
        put(p.k_turned, token * PE + places.x, pair.x);
        put(p.k_turned, token * PE + places.y, pair.y);
    }
    storageBarrier();
    let slot = arena[p.slots + token];
    if (slot < p.capacity) {
        for (var unit = lane.index; unit * state_UNIT_ELEMS < WIDTH; unit += LANES) {
            state_write_unit(key, slot, WIDTH, unit);
        }
    }
}

// The query of a head, into `head`. In uniform control flow.
fn make_query(lane: Lane, token: u32, of_head: u32, keep: bool) {
#if fused
    source = own_row();
    find_factors(lane, token);
    stage(lane, p.cols);
    if (keep && of_head == 0u) {
        keep_row(lane, token, false, true);
    }
    let first = p.query_first + of_head * HEAD;
    for (var o = 0u; o < HEAD; o += 4u) {
        let sums = query_four_rows(lane, first + o, first + HEAD - 1u, p.cols);
        if (lane.index < 4u && o + lane.index < HEAD) {
            head[o + lane.index] = sums[lane.index];
            if (keep) {
                put(p.query_y, (token * p.heads + of_head) * HEAD + o + lane.index, sums[lane.index]);
            }
        }
    }
#else
    for (var i = lane.index; i < HEAD; i += LANES) {
        head[i] = load(p.x + (token * p.heads + of_head) * HEAD + i);
    }
#endif
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    let token = wg.z;
    if (token >= now.tokens) {
        return;
    }
    if (wg.y == p.heads) {
        if (wg.x == 0u) {
            make_key(lane, token);
        }
        return;
    }
    let of_head = token * p.heads + wg.y;
    let keep = wg.x == 0u;
    make_query(lane, token, wg.y, keep);
    var factor = 1.0;
    if (p.length > 0u) {
        factor = 1.0 + p.factor_scale * log(1.0 + f32((arena[p.positions + token] + p.offset) / p.length));
    }
    if (keep) {
        for (var i = lane.index; i < NOPE; i += LANES) {
            put(p.nope_y, of_head * NOPE + i, head[p.nope_from + i]);
        }
        for (var i = lane.index; i < PE / 2u; i += LANES) {
            let places = pair_places(i);
            var pair = vec2<f32>(head[p.pe_from + places.x], head[p.pe_from + places.y]);
            put(p.pe_y, of_head * PE + places.x, pair.x);
            put(p.pe_y, of_head * PE + places.y, pair.y);
            if (places.z == 1u) {
                pair = turn(pair, p.table + 2u * (token * p.pairs + i));
            }
            put(p.turned, of_head * PE + places.x, pair.x);
            put(p.turned, of_head * PE + places.y, pair.y);
            put(p.joined, of_head * WIDTH + RANK + places.x, pair.x);
            put(p.joined, of_head * WIDTH + RANK + places.y, pair.y);
            store(p.y + of_head * WIDTH + RANK + places.x, pair.x * factor);
            store(p.y + of_head * WIDTH + RANK + places.y, pair.y * factor);
        }
    }
    stage_nope(lane);
    let first = p.key_first + wg.y * p.key_head_rows;
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        if (row >= RANK) {
            break;
        }
        let row0 = (first + row) * p.key_w_row_words;
        let row1 = (first + min(row + 1u, RANK - 1u)) * p.key_w_row_words;
        let row2 = (first + min(row + 2u, RANK - 1u)) * p.key_w_row_words;
        let row3 = (first + min(row + 3u, RANK - 1u)) * p.key_w_row_words;
        var sums = vec4<f32>(0.0);
        for (var group = lane.index; group < (NOPE + 15u) / 16u; group += LANES) {
            sums += key_dots(row0, row1, row2, row3, group);
        }
        let total = sum_lanes4(lane, sums);
        let out = row + lane.index;
        if (lane.index < 4u && out < RANK) {
            put(p.absorbed, of_head * RANK + out, total[lane.index]);
            put(p.joined, of_head * WIDTH + out, total[lane.index]);
            store(p.y + of_head * WIDTH + out, total[lane.index] * factor);
        }
    }
}
