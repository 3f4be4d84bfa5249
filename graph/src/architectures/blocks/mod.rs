//! The blocks that architectures are built from. Each appends nodes and the taps of its stages. What differs between
//! architectures and is no dimension is a spec: which tensors there are and what they are called.

pub mod attention;
mod branch;
mod chunk_experts;
pub mod compressed_attention;
pub mod decoder;
pub mod delta_net;
pub mod dense_ffn;
pub mod embedding;
pub mod ffn;
pub mod hyper;
mod indexer;
pub mod kda;
mod latent_attention;
pub mod lm_head;
pub mod mamba1;
pub mod mamba2;
mod mixer;
pub mod moe;
pub mod norm;
mod output_gate;
pub mod parallel_ffn;
pub mod rope;
pub mod shared_expert;
pub mod short_conv;
mod ungated_moe;
