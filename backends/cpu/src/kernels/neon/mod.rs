//! The versions for aarch64 with NEON and its dot products.

pub mod dot;
pub mod mul;

use std::arch::aarch64::*;

/// acc + the sums of four products each of signed bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot4(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: one instruction on registers; the CPU has it, by the function's features. (Its intrinsic is not stable.)
    unsafe {
        std::arch::asm!(
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
