// Attention: softmax(scale · q·kᵀ) · v over the cache, causal, grouped queries; one pass with a running maximum. A workgroup
// takes QUERY_ROWS rows of one KV head (row = token · GROUP + head in the group) and one part of the cached positions,
// POSITIONS at a time; grid (T · GROUP / QUERY_ROWS, G, parts). With one part the result is written; with more, each
// part writes its maximum, its sum and its unnormalised output, which attention_merge.wgsl joins.
// With `fused` (one token, QUERY_ROWS = GROUP) the Q/K norms, RoPE and KvWrite go before it in the same launch: every workgroup
// turns its queries for itself, and the one whose part holds the token's position writes its key and value first.
#include numbers
#include arena
#include visible
#if fused
#include packed
#include quantize_block
#include kv_write_unit key
#include kv_write_unit value
#include pairs
#include turn
#endif
#include kv key
#include kv value

struct Params {
    q: u32,
    positions: u32,
#if fused
    // Of a query head those elements that are attended by, from one head to the next; where somebody reads them by themselves, or NONE.
    q_step: u32,
    q_from: u32,
    q_copy: u32,
    k: u32,
    v: u32,
    slots: u32,
    capacity: u32,
    // In `smalls`, or NONE.
    q_norm: u32,
    k_norm: u32,
    q_eps: f32,
    k_eps: f32,
    table: u32,
    pairs: u32,
    interleaved: u32,
    // Values on the way, where somebody reads them; or NONE.
    q_normed: u32,
    k_normed: u32,
    q_turned: u32,
    k_turned: u32,
    // 1: the values are normed, head by head; the weights in `smalls`, or NONE; where the normed ones go, and from there to the cache.
    v_norms: u32,
    v_norm: u32,
    v_eps: f32,
    v_placed: u32,
    // The key as it is written to the cache, from there.
    k_placed: u32,
    // 1: the norms are of all heads at once; 1: they stand behind the rotation.
    whole_rows: u32,
    norm_last: u32,
#endif
    y: u32,
    // [T, H, splits, VALUE_DIM + 2]; used with more than one part.
    parts: u32,
    num_key_value_heads: u32,
    window: u32,
    chunk: u32,
    // 0: none.
    soft_cap: f32,
    scale: f32,
    // [H] in `smalls`, or NONE.
    sinks: u32,
    // [T, S], 0 at positions that are not seen; or NONE.
    mask: u32,
    // Of keys and values: position p is in row p modulo so many.
    rows: u32,
}

#if fused
@group(1) @binding(0) var<storage, read_write> key: array<key_word>;
@group(1) @binding(1) var<storage, read_write> value: array<value_word>;
#else
@group(1) @binding(0) var<storage, read> key: array<key_word>;
@group(1) @binding(1) var<storage, read> value: array<value_word>;
#endif

const POSITIONS: u32 = 32u;
// From a value head to the next, VALUE_STRIDE, is more than VALUE_DIM where values are the beginnings of keys.
const VALUE_PAIRS: u32 = VALUE_DIM / 2u;
// Lanes own a pair of output elements each, for every ROW_STEP-th row.
const ROW_STEP: u32 = LANES / VALUE_PAIRS;
const ROWS_PER_LANE: u32 = (QUERY_ROWS + ROW_STEP - 1u) / ROW_STEP;

var<workgroup> queries: array<f32, QUERY_ROWS * HEAD_DIM>;
var<workgroup> scores: array<f32, QUERY_ROWS * POSITIONS>;
var<workgroup> maxima: array<f32, QUERY_ROWS>;
var<workgroup> sums: array<f32, QUERY_ROWS>;
var<workgroup> rescale: array<f32, QUERY_ROWS>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = wg.x * QUERY_ROWS;
    let rows = now.tokens * GROUP;
    if (first_row >= rows) {
        return;
    }
    let heads = p.num_key_value_heads * GROUP;
    let key_width = p.num_key_value_heads * HEAD_DIM;
    let value_width = p.num_key_value_heads * VALUE_STRIDE;
    for (var i = lane; i < QUERY_ROWS * HEAD_DIM; i += LANES) {
        let row = min(first_row + i / HEAD_DIM, rows - 1u);
        let head = wg.y * GROUP + row % GROUP;
#if fused
        queries[i] = load(p.q + head * p.q_step + p.q_from + i % HEAD_DIM);
        if (wg.z == 0u && p.q_copy != NONE) {
            store(p.q_copy + head * HEAD_DIM + i % HEAD_DIM, queries[i]);
        }
#else
        queries[i] = load(p.q + (row / GROUP * heads + head) * HEAD_DIM + i % HEAD_DIM);
#endif
    }
    for (var r = lane; r < QUERY_ROWS; r += LANES) {
        maxima[r] = MASKED;
        sums[r] = 0.0;
    }
    workgroupBarrier();
#if fused
    turn_queries(lane, wg.y, wg.z == 0u);
    if ((now.cached - 1u) / now.split_positions == wg.z) {
        write_token(lane, wg.y, key_width, value_width);
    }
#endif

    var outputs: array<vec2<f32>, ROWS_PER_LANE>;
    let begin = wg.z * now.split_positions;
    let end = min(begin + now.split_positions, now.cached);
    for (var first = begin; first < end; first += POSITIONS) {
        for (var i = lane; i < QUERY_ROWS * POSITIONS; i += LANES) {
            let r = i / POSITIONS;
            let cached = first + i % POSITIONS;
            let row = first_row + r;
            var score = MASKED;
            if (row < rows && cached < end) {
                let position = arena[p.positions + row / GROUP];
                let chosen = is_chosen(p.mask, row / GROUP, cached);
                if (chosen && visible(cached, position, p.window, p.chunk)) {
                    let key_row = cached % p.rows * key_row_words(key_width);
                    var product = 0.0;
                    for (var pair = 0u; pair < HEAD_DIM / 2u; pair++) {
                        let k = key_pair(key_row, key_width, wg.y * (HEAD_DIM / 2u) + pair);
                        product += queries[r * HEAD_DIM + 2u * pair] * k.x;
                        product += queries[r * HEAD_DIM + 2u * pair + 1u] * k.y;
                    }
                    score = product * p.scale;
                    if (p.soft_cap != 0.0) {
                        score = p.soft_cap * tanh(score / p.soft_cap);
                    }
                }
            }
            scores[i] = score;
        }
        workgroupBarrier();
        for (var r = lane; r < QUERY_ROWS; r += LANES) {
            var largest = maxima[r];
            for (var i = 0u; i < POSITIONS; i++) {
                largest = max(largest, scores[r * POSITIONS + i]);
            }
            let factor = exp(maxima[r] - largest);
            var sum = sums[r] * factor;
            for (var i = 0u; i < POSITIONS; i++) {
                let score = scores[r * POSITIONS + i];
                let weight = select(exp(score - largest), 0.0, score == MASKED);
                scores[r * POSITIONS + i] = weight;
                sum += weight;
            }
            maxima[r] = largest;
            sums[r] = sum;
            rescale[r] = factor;
        }
        workgroupBarrier();
        if (lane < ROW_STEP * VALUE_PAIRS) {
            let pair = lane % VALUE_PAIRS;
            for (var j = 0u; j < ROWS_PER_LANE; j++) {
                let r = min(lane / VALUE_PAIRS + j * ROW_STEP, QUERY_ROWS - 1u);
                outputs[j] *= rescale[r];
            }
            let count = min(POSITIONS, end - first);
            for (var i = 0u; i < count; i++) {
                let value_row = (first + i) % p.rows * value_row_words(value_width);
                let v = value_pair(value_row, value_width, wg.y * (VALUE_STRIDE / 2u) + pair);
                for (var j = 0u; j < ROWS_PER_LANE; j++) {
                    let r = min(lane / VALUE_PAIRS + j * ROW_STEP, QUERY_ROWS - 1u);
                    let weight = scores[r * POSITIONS + i];
                    // A position that is not seen must not leak a NaN of its value row.
                    outputs[j] += select(weight * v, vec2<f32>(0.0), weight == 0.0);
                }
            }
        }
        workgroupBarrier();
    }

    if (lane >= ROW_STEP * VALUE_PAIRS) {
        return;
    }
    let pair = lane % VALUE_PAIRS;
    for (var j = 0u; j < ROWS_PER_LANE; j++) {
        let r = lane / VALUE_PAIRS + j * ROW_STEP;
        let row = first_row + r;
        if (r < QUERY_ROWS && row < rows) {
            let head = wg.y * GROUP + row % GROUP;
            let out = row / GROUP * heads + head;
            if (now.splits == 1u) {
                var sum = sums[r];
                var output = outputs[j];
                if (p.sinks != NONE) {
                    let sink = small(p.sinks + head);
                    let largest = max(maxima[r], sink);
                    let factor = exp(maxima[r] - largest);
                    sum = sum * factor + exp(sink - largest);
                    output *= factor;
                }
                store(p.y + out * VALUE_DIM + 2u * pair, output.x / sum);
                store(p.y + out * VALUE_DIM + 2u * pair + 1u, output.y / sum);
            } else {
                let at = p.parts + (out * now.splits + wg.z) * (VALUE_DIM + 2u);
                if (pair == 0u) {
                    store(at, maxima[r]);
                    store(at + 1u, sums[r]);
                }
                store(at + 2u + 2u * pair, outputs[j].x);
                store(at + 3u + 2u * pair, outputs[j].y);
            }
        }
    }
}
