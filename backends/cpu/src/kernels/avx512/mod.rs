//! The AVX-512 + VNNI versions of the matmul kernels.

mod coded;
pub mod dot;
pub mod dot_floats;
pub mod few;
pub mod mul;
mod small_blocks;
mod super_blocks;
pub mod unpack;

use super::layout::{Lanes, Panel, PanelLayout, TileStep, WideLanes, Zero};

type Mul = unsafe fn(&Panel, usize, TileStep<'_>, *mut Lanes);
type MulWide = unsafe fn(usize, *const f32, *const f32, usize, *mut WideLanes);

/// The kernels for 1 to 8 tokens.
macro_rules! by_tokens {
    ($sub:literal, $shift:expr, $super:literal) => {
        [
            mul::mul::<1, $sub, { $shift }, $super> as Mul,
            mul::mul::<2, $sub, { $shift }, $super>,
            mul::mul::<3, $sub, { $shift }, $super>,
            mul::mul::<4, $sub, { $shift }, $super>,
            mul::mul::<5, $sub, { $shift }, $super>,
            mul::mul::<6, $sub, { $shift }, $super>,
            mul::mul::<7, $sub, { $shift }, $super>,
            mul::mul::<8, $sub, { $shift }, $super>,
        ]
    };
}

/// The multiplication for a layout; `None` for a layout that no format has.
pub fn mul_for(layout: PanelLayout, tokens: usize) -> Option<Mul> {
    const MIN: u32 = mul::MIN;
    let table = match (layout.sub_elems, layout.zero, layout.super_block) {
        (32, Zero::Shift(3), false) => by_tokens!(32, 3, false),
        (32, Zero::Shift(4), false) => by_tokens!(32, 4, false),
        (32, Zero::Shift(7), false) => by_tokens!(32, 7, false),
        (32, Zero::Min, false) => by_tokens!(32, MIN, false),
        (16, Zero::Shift(4), false) => by_tokens!(16, 4, false),
        (32, Zero::Shift(7), true) => by_tokens!(32, 7, true),
        (16, Zero::Shift(7), true) => by_tokens!(16, 7, true),
        (16, Zero::Shift(2), true) => by_tokens!(16, 2, true),
        (16, Zero::Shift(5), true) => by_tokens!(16, 5, true),
        (32, Zero::Min, true) => by_tokens!(32, MIN, true),
        (16, Zero::Min, true) => by_tokens!(16, MIN, true),
        _ => return None,
    };
    table.get(tokens.wrapping_sub(1)).copied()
}

/// The kernels of [`mul::mul_wide`] for 1 to 8 tokens.
pub const MUL_WIDE: [MulWide; 8] = [
    mul::mul_wide::<1>,
    mul::mul_wide::<2>,
    mul::mul_wide::<3>,
    mul::mul_wide::<4>,
    mul::mul_wide::<5>,
    mul::mul_wide::<6>,
    mul::mul_wide::<7>,
    mul::mul_wide::<8>,
];

/// The kernels of [`mul::fma`] for 1 to 8 rows.
pub const FMA: [super::fma::Fma; 8] = [
    mul::fma::<1>,
    mul::fma::<2>,
    mul::fma::<3>,
    mul::fma::<4>,
    mul::fma::<5>,
    mul::fma::<6>,
    mul::fma::<7>,
    mul::fma::<8>,
];

/// The kernels of [`mul::fma_pair`] for 1 to 8 rows.
pub const FMA_PAIR: [super::fma::FmaPair; 8] = [
    mul::fma_pair::<1>,
    mul::fma_pair::<2>,
    mul::fma_pair::<3>,
    mul::fma_pair::<4>,
    mul::fma_pair::<5>,
    mul::fma_pair::<6>,
    mul::fma_pair::<7>,
    mul::fma_pair::<8>,
];
