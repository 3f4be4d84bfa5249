//! The AVX2 versions of the matmul kernels and of unpacking floats.

pub mod dot;
pub mod mul;
pub mod unpack;
