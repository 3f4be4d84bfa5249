//! moe-run text: from text to tokens and back, and the prompts that a model's own chat template writes.
//!
//! A model file is a stranger's program: what its tokenizer and template may cost is bounded here.
#![deny(missing_docs)]

pub mod chat;
pub mod constraint;
pub mod stop;
pub mod tokenizer;
pub mod toolcalls;
