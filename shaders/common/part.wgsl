// Element i of `$W` of a token: what may be a part of each head of a row, read where it lies; `keep` says that this lane writes
// it down where somebody reads it by itself.
fn $W_element(token: u32, i: u32, keep: bool) -> f32 {
    var at = i;
    if (p.$W_len > 0u) {
        at = i / p.$W_len * p.$W_step + p.$W_from + i % p.$W_len;
    }
    let value = load(p.$W_x + token * p.$W_row + at);
    if (keep && p.$W_copy != NONE) {
        store(p.$W_copy + token * (p.$W_row / max(p.$W_step, 1u) * p.$W_len) + i, value);
    }
    return value;
}
