//! Stage 1: a GGUF file → its metadata and tensor table, with the tensors' bytes mapped and never copied.
//!
//! Input: a path (any part of a split model) or bytes in memory. Output: [`GgufFile`].
//! Files come from strangers. Every count, length and offset that a file states is checked against what the file can
//! hold before anything is allocated or indexed, and arithmetic on them is checked.
//! Deliberately absent: any knowledge of what a key or a tensor means; that begins with the configuration (stage 2).

mod cursor;
mod error;
mod file;
mod header;
pub mod keys;
mod metadata;
mod split;
pub mod writer;

pub use error::GgufError;
pub use file::{GgufBytes, GgufFile, GgufPart, MappedFile, TensorEntry};
pub use metadata::{MetaArray, MetaValue, Metadata};
