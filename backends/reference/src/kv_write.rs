//! Rows into the state, rounded as the state stores them.

use moe_run_runtime::executable::KvType;

/// `rows` [T, width] → `state` [capacity, width] at `slots` [T].
pub(super) fn kv_write(rows: &[f32], slots: &[usize], width: usize, kv_type: KvType, state: &mut [f32]) {
    for (row, slot) in rows.chunks_exact(width).zip(slots) {
        let out = &mut state[*slot * width..][..width];
        out.copy_from_slice(row);
        kv_type.round_row(out);
    }
}
