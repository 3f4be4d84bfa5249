//! moe-run graph: from a GGUF file to a static op graph. No GPU API is linked here.
#![deny(missing_docs)]

pub mod gguf;
pub mod ids;
pub mod quant;
