//! moe-run runtime: the contract between a backend and what drives it, sessions and sampling.
//!
//! A [`Backend`] compiles a graph into an [`Executable`]; a [`Session`](session::Session) drives it and is the only
//! holder of state between tokens; an [`Observer`] looks at, or replaces, what flows between launches. No backend ever
//! sees an architecture's name. Deliberately absent: any backend, and any text.
#![deny(missing_docs)]

pub mod bandwidth;
mod blocks;
pub mod checks;
pub mod choice;
pub mod engine;
pub mod error;
pub mod executable;
pub mod exp;
pub mod generate;
pub mod host_memory;
mod kept_rows;
pub mod options;
pub mod partial_file;
pub mod placed;
pub mod rings;
pub mod runner;
pub mod sampler;
pub mod sequences;
pub mod session;
pub mod sharing;
pub mod step;
mod tensor;
pub mod weights;

pub use error::BackendError;
pub use executable::{
    Activations, Backend, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo, HostTensor,
    KvType, Loaded, MemoryNeed, Observer, OnOpened, Opened, Progress, State, StepInput, TapValue, TensorData,
    TensorView, ValueAccess, ViewData, WeightSource, Weights,
};
