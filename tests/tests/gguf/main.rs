//! The GGUF reader and writer: what a right file gives, and that no wrong one does harm.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod errors;
mod hostile;
mod reader;
mod split;
