//! The GGUF reader and writer: what a right file gives, and that no wrong one does harm.

mod common;
mod errors;
mod hostile;
mod reader;
mod split;
