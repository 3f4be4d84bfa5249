//! Stage 1: the tensor formats of GGUF files; for each, its block's layout and its exact scalar decode.
//!
//! Input: a tensor's bytes as the file holds them. Output: f32 values, row by row.
//! One file per format defines the block struct (alignment 1, so a view of mapped bytes needs no copy), asserts its
//! size and takes it apart into [`Integers`] under scales, which decode in one way; these functions are the definition that every fast path is tested against.
//! The other way, f32 rows become bytes of those formats that can be written well ([`encode`]).
//! Deliberately absent: any decoded copy of a whole tensor.

mod format;

pub use activation::{ActBlock, ActProfile, ActQ8x32, ActQ8x256, ActivationPrecision};
pub use check::NonFinite;
pub use encode::EncodeError;
pub use format::{Format, UnknownFormat};
pub use ggml_type::GgmlType;
pub use integers::Integers;

pub mod activation;
mod bf16;
mod check;
mod decode;
pub mod encode;
mod f16;
mod f32;
mod ggml_type;
pub mod grids;
mod integers;
pub mod iq1_m;
pub mod iq1_s;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod nvfp4;
pub mod q1_0;
pub mod q2_0;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod tq1_0;
pub mod tq2_0;

/// A binary16 of a block, widened (exact).
#[inline]
pub fn f16_at(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// A binary16 of a block: the nearest, ties to even.
#[inline]
fn f16_bytes(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}
