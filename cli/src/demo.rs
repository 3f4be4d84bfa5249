//! The built-in demo model: a real, if tiny, mixture-of-experts chat model, compiled into the binary.

use moe_run_graph::gguf::{GgufError, GgufFile};

/// The name that stands for the file in messages.
pub const NAME: &str = "built-in demo model";

/// Weights are read in place, so the file's bytes begin at an address that suits every element.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../tests/models/tiny-qwen3moe-q4_k_m.gguf"));

/// The demo model's file.
///
/// Errors: none in practice; the file is read like any other.
pub fn file() -> Result<GgufFile, GgufError> {
    GgufFile::from_bytes(NAME, &MODEL.0)
}
