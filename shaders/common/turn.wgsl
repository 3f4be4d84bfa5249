// Q/K norm and RoPE of one token's heads in workgroup memory, and the writing of its key and value. Norms are of each head, or
// of whole rows; they stand before the rotation or, if of heads, behind it.

var<workgroup> norm_factors: array<f32, GROUP>;

var<workgroup> row_squares: array<f32, LANES>;

// The factor of a norm over the `width` elements at `x`. In uniform control flow.
fn row_factor(lane: u32, x: u32, width: u32, eps: f32) -> f32 {
    var squares = 0.0;
    for (var i = lane; i < width; i += LANES) {
        squares += load(x + i) * load(x + i);
    }
    row_squares[lane] = squares;
    workgroupBarrier();
    squares = 0.0;
    for (var i = 0u; i < LANES; i++) {
        squares += row_squares[i];
    }
    workgroupBarrier();
    return 1.0 / sqrt(squares / f32(width) + eps);
}

// Where in the norm's weights the part for a head begins.
fn norm_part(norm: u32, head: u32) -> u32 {
    return norm + select(0u, head * HEAD_DIM, p.whole_rows == 1u);
}

// The factors of the norm of each query head, into `norm_factors`.
fn find_query_factors(lane: u32) {
    for (var head = lane; head < GROUP; head += LANES) {
        var squares = 0.0;
        for (var i = 0u; i < HEAD_DIM; i++) {
            squares += queries[head * HEAD_DIM + i] * queries[head * HEAD_DIM + i];
        }
        norm_factors[head] = 1.0 / sqrt(squares / f32(HEAD_DIM) + p.q_eps);
    }
    workgroupBarrier();
}

// The GROUP query heads of KV head `kv_head`, already in `queries`; `keep` says that this workgroup writes them down.
fn turn_queries(lane: u32, kv_head: u32, keep: bool) {
    var whole = 1.0;
    if (p.q_norm != NONE && p.whole_rows == 1u) {
        whole = row_factor(lane, p.q, p.num_key_value_heads * GROUP * HEAD_DIM, p.q_eps);
    } else if (p.q_norm != NONE && p.norm_last == 0u) {
        find_query_factors(lane);
    }
    for (var index = lane; index < GROUP * HEAD_DIM / 2u; index += LANES) {
        let head = index / (HEAD_DIM / 2u);
        let i = index % (HEAD_DIM / 2u);
        let places = pair_places(i);
        let row = head * HEAD_DIM;
        var pair = vec2<f32>(queries[row + places.x], queries[row + places.y]);
        let out = (kv_head * GROUP + head) * HEAD_DIM;
        if (p.q_norm != NONE && p.norm_last == 0u) {
            let norm = norm_part(p.q_norm, kv_head * GROUP + head);
            let factor = select(norm_factors[head], whole, p.whole_rows == 1u);
            pair *= factor * vec2<f32>(small(norm + places.x), small(norm + places.y));
            if (keep && p.q_normed != NONE) {
                store(p.q_normed + out + places.x, pair.x);
                store(p.q_normed + out + places.y, pair.y);
            }
        }
        if (places.z == 1u) {
            pair = turn(pair, p.table + 2u * i);
        }
        if (keep && p.q_turned != NONE) {
            store(p.q_turned + out + places.x, pair.x);
            store(p.q_turned + out + places.y, pair.y);
        }
        queries[row + places.x] = pair.x;
        queries[row + places.y] = pair.y;
    }
    workgroupBarrier();
    if (p.norm_last == 0u) {
        return;
    }
    find_query_factors(lane);
    for (var index = lane; index < GROUP * HEAD_DIM; index += LANES) {
        let head = index / HEAD_DIM;
        queries[index] *= norm_factors[head];
        if (p.q_norm != NONE) {
            queries[index] *= small(p.q_norm + index % HEAD_DIM);
        }
        if (keep && p.q_normed != NONE) {
            store(p.q_normed + kv_head * GROUP * HEAD_DIM + index, queries[index]);
        }
    }
    workgroupBarrier();
}

// Norms and turns the token's key of this KV head, and writes key and value into the cache, from where they are read again.
fn write_token(lane: u32, kv_head: u32, key_width: u32, value_width: u32) {
    let head = kv_head * HEAD_DIM;
    var factor = 1.0;
    if (p.k_norm != NONE && p.whole_rows == 1u) {
        factor = row_factor(lane, p.k, key_width, p.k_eps);
    } else if (p.k_norm != NONE && p.norm_last == 0u) {
        factor = key_factor(p.k + head);
    }
    for (var i = lane; i < HEAD_DIM / 2u; i += LANES) {
        let places = pair_places(i);
        var pair = vec2<f32>(load(p.k + head + places.x), load(p.k + head + places.y));
        if (p.k_norm != NONE && p.norm_last == 0u) {
            let norm = norm_part(p.k_norm, kv_head);
            pair *= factor * vec2<f32>(small(norm + places.x), small(norm + places.y));
            if (p.k_normed != NONE) {
                store(p.k_normed + head + places.x, pair.x);
                store(p.k_normed + head + places.y, pair.y);
            }
        }
        if (places.z == 1u) {
            pair = turn(pair, p.table + 2u * i);
        }
        if (p.k_turned != NONE) {
            store(p.k_turned + head + places.x, pair.x);
            store(p.k_turned + head + places.y, pair.y);
        }
        store(p.k_placed + head + places.x, pair.x);
        store(p.k_placed + head + places.y, pair.y);
    }
    storageBarrier();
    if (p.norm_last == 1u) {
        factor = key_factor(p.k_placed + head);
        storageBarrier();
        for (var i = lane; i < HEAD_DIM; i += LANES) {
            var key = load(p.k_placed + head + i) * factor;
            if (p.k_norm != NONE) {
                key *= small(p.k_norm + i);
            }
            store(p.k_placed + head + i, key);
            if (p.k_normed != NONE) {
                store(p.k_normed + head + i, key);
            }
        }
        storageBarrier();
    }
    var v = p.v;
    if (p.v_norms == 1u) {
        v = p.v_placed;
        norm_value(lane, kv_head);
        storageBarrier();
    }
    let slot = arena[p.slots];
    if (slot < p.capacity) {
        // A head is whole units: its width is a multiple of what a unit holds.
        for (var unit = lane; unit < HEAD_DIM / key_UNIT_ELEMS; unit += LANES) {
            key_write_unit(p.k_placed, slot % p.rows, key_width, head / key_UNIT_ELEMS + unit);
        }
        for (var unit = lane; unit < VALUE_DIM / value_UNIT_ELEMS; unit += LANES) {
            value_write_unit(v, slot % p.rows, value_width, kv_head * VALUE_DIM / value_UNIT_ELEMS + unit);
        }
    }
    storageBarrier();
}

// The token's value of a KV head under its norm.
fn norm_value(lane: u32, kv_head: u32) {
    let first = kv_head * VALUE_DIM;
    var squares = 0.0;
    for (var i = 0u; i < VALUE_DIM; i++) {
        squares += load(p.v + first + i) * load(p.v + first + i);
    }
    let factor = 1.0 / sqrt(squares / f32(VALUE_DIM) + p.v_eps);
    for (var i = lane; i < VALUE_DIM; i += LANES) {
        var value = load(p.v + first + i) * factor;
        if (p.v_norm != NONE) {
            value *= small(p.v_norm + i);
        }
        store(p.v_placed + first + i, value);
    }
}

// The factor of the norm of the key head at `x`.
fn key_factor(x: u32) -> f32 {
    var squares = 0.0;
    for (var i = 0u; i < HEAD_DIM; i++) {
        squares += load(x + i) * load(x + i);
    }
    return 1.0 / sqrt(squares / f32(HEAD_DIM) + p.k_eps);
}
