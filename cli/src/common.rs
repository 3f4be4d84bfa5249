//! Options that several commands share: the model, and how it is run.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::ValueEnum;

/// Which model.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelArgs {
    /// GGUF file of the model (of a split model, any part); the built-in demo model where absent
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
}

/// Which backend runs it, and with which arithmetic.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Backend")]
pub struct BackendArgs {
    /// Backend that runs the model; `auto` chooses and says what it chose
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub backend: BackendName,

    /// Device of that backend, by number or part of its name, as `moe-run devices` lists them
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Precision of activations in matrix products with quantized weights [default: the backend's fastest]
    #[arg(long, value_enum)]
    pub activations: Option<ActivationsName>,

    /// Format of the KV cache
    #[arg(long, value_enum, default_value_t = KvTypeName::F16)]
    pub kv_type: KvTypeName,

    /// Tokens that the context holds [default: the model's own limit, 4096 at most]
    #[arg(short, long, value_name = "TOKENS")]
    pub ctx_size: Option<NonZeroUsize>,

    /// Threads of the CPU backend [default: the physical cores]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// `--backend`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendName {
    /// The fastest that this machine has
    Auto,
    /// Multi-threaded CPU backend
    Cpu,
    /// The scalar interpreter that defines every operation; slow
    Reference,
}

/// `--activations`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActivationsName {
    /// 32-bit floats, no 16-bit matrix units
    F32,
    /// 16-bit floats
    F16,
    /// 8-bit integers in blocks with a scale
    Q8,
}

/// `--kv-type`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvTypeName {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// 8-bit integers in blocks of 32 with a scale
    #[value(name = "q8_0")]
    Q8_0,
}
