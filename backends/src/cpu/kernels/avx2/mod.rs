//! The AVX2 versions of the matmul kernels.

pub mod dot;
pub mod mul;
