//! The CPU's arithmetic: pure functions on slices, without threads, graphs or allocation.
//!
//! `layout` says what panels and tiles are; `unpack`, `mul`, `fma`, `vector` and `recurrent` hold the portable functions, which
//! define; `avx2`, `avx512` and `neon` hold what the compiler would not find by itself; `prefetch` says how weights are
//! asked for; `dispatch` chooses once, at run time, with `rows` for whole rows of weights.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dispatch;
mod fma;
pub mod layout;
mod mul;
#[cfg(target_arch = "aarch64")]
mod neon;
mod prefetch;
mod recurrent;
mod rows;
#[cfg(test)]
mod tests;
mod unpack;
mod vector;

pub use dispatch::{Isa, Kernels};
pub use layout::{
    Lanes, PANEL_ROWS, Panel, PanelF32, PanelLayout, STEP_ELEMS, TILE_TOKENS, TileStep, WideLanes, flat,
    flat_mut, wide_flat, wide_flat_mut,
};
pub use prefetch::{Cache, Lookahead};
pub use recurrent::{DeltaTile, ScanChannels, ScanToken};
