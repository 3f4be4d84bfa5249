//! The blocks that architectures are built from. Each appends nodes and the taps of its stages.

pub mod attention;
pub mod dense_ffn;
pub mod embedding;
pub mod lm_head;
pub mod moe;
pub mod norm;
pub mod rope;
