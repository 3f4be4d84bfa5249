//! moe-run backends: stages 5 to 7, Plan → Executable → logits → token.
//!
//! A [`Backend`] compiles a graph into an [`Executable`]; a [`Session`](session::Session) drives it and is the only
//! holder of state between tokens; an [`Observer`] looks at, or replaces, what flows between launches. No backend ever
//! sees an architecture's name.
#![deny(missing_docs)]

pub mod cases;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod executable;
pub mod perplexity;
pub mod reference;
pub mod registry;
pub mod sampler;
pub mod session;
pub mod taps;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use error::BackendError;
pub use executable::{
    Activations, Backend, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo, HostTensor,
    KvType, Observer, Progress, State, StepInput, TapValue, TensorData, ValueAccess, WeightSource,
};
