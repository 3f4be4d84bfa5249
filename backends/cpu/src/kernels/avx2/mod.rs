//! The AVX2 versions of the matmul kernels and of unpacking floats.

pub mod coded;
pub mod codes;
pub mod dot;
pub mod mul;
pub mod unpack;
