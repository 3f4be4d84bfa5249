//! moe-run graph: from a GGUF file to a static op graph and its plan. No GPU API is linked here.
//!
//! ```text
//! file.gguf ─(1) gguf─> metadata + tensor views ─(2) config, weights─> ModelConfig + weights
//!   ─(3) lower─> ir::Graph, with a tap at every stage ─(4) passes─> Plan: taps dropped, nodes grouped, memory planned
//! ```
#![deny(missing_docs)]

pub mod architectures;
pub mod config;
pub mod cost;
pub mod dump;
pub mod fnv;
pub mod gguf;
pub mod groups;
pub mod ids;
pub mod ir;
pub mod model;
pub mod passes;
pub mod place;
pub mod quant;
pub mod quantize;
pub mod shown;
pub mod synth;
pub mod verify;
pub mod weights;

pub use model::{Model, ModelError};
