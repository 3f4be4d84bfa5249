//! Stage 1: the tensor formats of GGUF files; for each, its block's layout and its exact scalar decode.
//!
//! Input: a tensor's bytes as the file holds them. Output: f32 values, row by row.
//! One file per format defines the block struct (alignment 1, so a view of mapped bytes needs no copy), asserts its
//! size and decodes it; these functions are the definition that every fast path is tested against.
//! Deliberately absent: encoding (this project never quantizes weights) and any decoded copy of a whole tensor.

mod format;

pub use format::{Format, UnknownFormat};
