//! moe-run backends: stages 5 to 7, Plan → Executable → logits → token, on every backend of this build.
//!
//! [`registry`] has the backends by name, [`auto`] chooses one; the runtime that drives them is handed on whole, so that a library user needs
//! this crate alone.
//!
//! Load a model, evaluate a prompt, look at a tap:
//!
//! ```
//! use moe_run_backends::session::{LogitsRows, Session};
//! use moe_run_backends::{BackendError, CompileOptions, Observer, TapValue, registry};
//! use moe_run_graph::ir::Stage;
//! use moe_run_graph::{Model, gguf::GgufFile, ids::TokenId};
//!
//! /// Prints which experts each token went to.
//! struct Experts;
//!
//! impl Observer for Experts {
//!     fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
//!         println!("{} {:?}: {:?}", tap.stage.path(tap.layer), tap.tensor.shape, tap.tensor.data);
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/tiny-qwen3moe-q4_k_m.gguf");
//! let model = Model::from_file(GgufFile::open(path)?)?;
//! let options = CompileOptions {
//!     ctx_size: 256,
//!     taps: [(Stage::MoeTopkIds, Some(0))].into_iter().collect(),
//!     ..CompileOptions::default()
//! };
//! let backend = registry::by_name("reference")?; // or "cpu", "cuda", "wgpu"
//! let mut session = Session::new(backend.compile(&model.graph, model.file.clone(), &options)?)?;
//!
//! // "What is 2+2?" in the model's chat template.
//! let prompt = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198].map(TokenId);
//! session.feed(&prompt, LogitsRows::Last, Some(&mut Experts), |_, _| Ok(()))?;
//! assert_eq!(session.argmax()?, TokenId(17)); // "2", of "2 + 2 = 4"
//! session.decode(TokenId(17), None)?;
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

pub mod auto;
pub mod placement;
pub mod registry;

#[cfg(feature = "cpu")]
pub use moe_run_cpu as cpu;
#[cfg(feature = "cuda")]
pub use moe_run_cuda as cuda;
pub use moe_run_reference as reference;
pub use moe_run_runtime::*;
#[cfg(feature = "wgpu")]
pub use moe_run_wgpu as wgpu;
