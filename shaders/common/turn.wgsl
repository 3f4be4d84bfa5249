// Q/K norm and RoPE of one token's heads in workgroup memory, and the writing of its key and value.

var<workgroup> norm_factors: array<f32, GROUP>;

// Both elements of a head's pair `i`: where they stand, and whether they are turned.
fn pair_places(i: u32) -> vec3<u32> {
    if (i >= p.pairs) {
        return vec3<u32>(2u * i, 2u * i + 1u, 0u);
    }
    if (p.interleaved == 1u) {
        return vec3<u32>(2u * i, 2u * i + 1u, 1u);
    }
    return vec3<u32>(i, i + p.pairs, 1u);
}

fn turn(pair: vec2<f32>, i: u32) -> vec2<f32> {
    let c = load(p.table + 2u * i);
    let s = load(p.table + 2u * i + 1u);
    return vec2<f32>(pair.x * c - pair.y * s, pair.y * c + pair.x * s);
}

// The GROUP query heads of KV head `kv_head`, already in `queries`; `keep` says that this workgroup writes them down.
fn turn_queries(lane: u32, kv_head: u32, keep: bool) {
    for (var head = lane; head < GROUP; head += LANES) {
        var factor = 1.0;
        if (p.q_norm != NONE) {
            var squares = 0.0;
            for (var i = 0u; i < HEAD_DIM; i++) {
                squares += queries[head * HEAD_DIM + i] * queries[head * HEAD_DIM + i];
            }
            factor = 1.0 / sqrt(squares / f32(HEAD_DIM) + p.q_eps);
        }
        norm_factors[head] = factor;
    }
    workgroupBarrier();
    for (var index = lane; index < GROUP * HEAD_DIM / 2u; index += LANES) {
        let head = index / (HEAD_DIM / 2u);
        let i = index % (HEAD_DIM / 2u);
        let places = pair_places(i);
        let row = head * HEAD_DIM;
        var pair = vec2<f32>(queries[row + places.x], queries[row + places.y]);
        if (p.q_norm != NONE) {
            pair *= norm_factors[head] * vec2<f32>(small(p.q_norm + places.x), small(p.q_norm + places.y));
        }
        let out = (kv_head * GROUP + head) * HEAD_DIM;
        if (keep && p.q_normed != NONE) {
            store(p.q_normed + out + places.x, pair.x);
            store(p.q_normed + out + places.y, pair.y);
        }
        if (places.z == 1u) {
            pair = turn(pair, i);
        }
        if (keep && p.q_turned != NONE) {
            store(p.q_turned + out + places.x, pair.x);
            store(p.q_turned + out + places.y, pair.y);
        }
        queries[row + places.x] = pair.x;
        queries[row + places.y] = pair.y;
    }
    workgroupBarrier();
}

// Norms and turns the token's key of this KV head, and writes key and value into the cache, from where they are read again.
fn write_token(lane: u32, kv_head: u32, key_width: u32, value_width: u32) {
    let head = kv_head * HEAD_DIM;
    var factor = 1.0;
    if (p.k_norm != NONE) {
        var squares = 0.0;
        for (var i = 0u; i < HEAD_DIM; i++) {
            squares += load(p.k + head + i) * load(p.k + head + i);
        }
        factor = 1.0 / sqrt(squares / f32(HEAD_DIM) + p.k_eps);
    }
    for (var i = lane; i < HEAD_DIM / 2u; i += LANES) {
        let places = pair_places(i);
        var pair = vec2<f32>(load(p.k + head + places.x), load(p.k + head + places.y));
        if (p.k_norm != NONE) {
            pair *= factor * vec2<f32>(small(p.k_norm + places.x), small(p.k_norm + places.y));
        }
        if (p.k_normed != NONE) {
            store(p.k_normed + head + places.x, pair.x);
            store(p.k_normed + head + places.y, pair.y);
        }
        if (places.z == 1u) {
            pair = turn(pair, i);
        }
        store(p.k_turned + head + places.x, pair.x);
        store(p.k_turned + head + places.y, pair.y);
    }
    storageBarrier();
    let slot = arena[p.slots];
    if (slot < p.capacity) {
        // A head is whole units: its width is a multiple of what a unit holds.
        for (var unit = lane; unit < HEAD_DIM / key_UNIT_ELEMS; unit += LANES) {
            key_write_unit(p.k_turned, slot, key_width, head / key_UNIT_ELEMS + unit);
        }
        for (var unit = lane; unit < VALUE_DIM / value_UNIT_ELEMS; unit += LANES) {
            value_write_unit(p.v, slot, value_width, kv_head * VALUE_DIM / value_UNIT_ELEMS + unit);
        }
    }
    storageBarrier();
}
