//! Options that several commands share: the model, and how it is run.

use std::{
    num::{IntErrorKind, NonZeroUsize, ParseIntError},
    path::PathBuf,
    str::FromStr,
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use moe_run_backends::{Activations, CompileOptions, KvType, registry};
use moe_run_graph::{Model, gguf::GgufFile};

use crate::{CliError, demo, mapped, output, place_args::PlaceArgs};

/// The context that is allocated unless `--ctx-size` says otherwise, where the model's own is not smaller.
pub const DEFAULT_CTX_SIZE: usize = 4096;

/// Which model.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelArgs {
    /// GGUF file of the model (of a split model, any part); the built-in demo model where absent
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    /// Opens the file, or the demo model, and says so when it is that one.
    ///
    /// Errors: the file is unreadable or not a valid GGUF file.
    pub fn open_file(&self) -> Result<GgufFile, CliError> {
        match &self.model {
            Some(path) => mapped::open(path, "the model's file"),
            None => {
                output::note(
                    "model: the built-in demo model (a tiny one, for trying things out; -m FILE runs another)",
                );
                Ok(demo::file()?)
            }
        }
    }

    /// Opens and lowers the model.
    ///
    /// Errors: as [`ModelArgs::open_file`], and what lowering refuses.
    pub fn open(&self) -> Result<Model, CliError> {
        Ok(Model::from_file(self.open_file()?)?)
    }
}

/// Which backend runs it, and with which arithmetic.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Backend")]
pub struct BackendArgs {
    /// Backend that runs the model; `auto` takes the fastest that can, and says which
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = backend_names())]
    pub backend: String,

    /// Device of that backend, by number or name, as `moe-run devices` lists them; without --backend a list of devices that
    /// share the model, such as cuda:0,cuda:1,cpu
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// How several devices share it
    #[command(flatten)]
    pub place: PlaceArgs,

    /// Precision of the activations that quantized weights are multiplied with [default: the backend's fastest]
    #[arg(long, value_name = "TYPE", value_parser = activations())]
    pub activations: Option<Activations>,

    /// How the KV cache is stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    pub kv_type: KvType,

    /// Tokens that the context holds [default: what the model was trained for, 4096 at most]
    #[arg(short, long, value_name = "TOKENS", allow_negative_numbers = true, value_parser = whole_number::<NonZeroUsize>)]
    pub ctx_size: Option<NonZeroUsize>,

    /// Threads of the CPU backend; any number gives the same result [default: the physical cores]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = whole_number::<NonZeroUsize>)]
    pub threads: Option<NonZeroUsize>,
}

impl BackendArgs {
    /// Checks what can be checked before a model is there.
    ///
    /// Errors: options that contradict each other.
    pub fn check(&self) -> Result<(), CliError> {
        self.place.request(&self.backend, self.device.as_deref()).map(drop)
    }

    /// The context for a model.
    pub fn ctx_size(&self, model: &Model) -> usize {
        let trained_for = model.config.max_position_embeddings;
        self.ctx_size.map_or(DEFAULT_CTX_SIZE.min(trained_for), NonZeroUsize::get)
    }

    /// What a model is compiled with.
    ///
    /// Errors: as [`BackendArgs::check`].
    pub fn compile_options(&self, model: &Model) -> Result<CompileOptions, CliError> {
        let place = self.place.request(&self.backend, self.device.as_deref())?;
        Ok(CompileOptions {
            activations: self.activations,
            kv_type: self.kv_type,
            ctx_size: self.ctx_size(model),
            threads: self.threads.map(NonZeroUsize::get),
            device: self.device.clone().filter(|_| place.is_none()),
            place,
            ..CompileOptions::default()
        })
    }
}

/// A device belongs to a backend, so it cannot be chosen together with `auto`.
///
/// Errors: it is.
pub fn check_device(backend: &str, device: Option<&str>) -> Result<(), CliError> {
    match device {
        Some(device) if backend == "auto" => Err(CliError::bad_input(format!(
            "--device {device}: devices are numbered by backend; give --backend, too (`moe-run devices` lists both)"
        ))),
        _ => Ok(()),
    }
}

/// A whole number of the command line, its least value being what the type allows: 0, or 1 where it is never zero.
///
/// Errors: which numbers are allowed.
pub fn whole_number<T: FromStr<Err = ParseIntError>>(argument: &str) -> Result<T, String> {
    argument.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "the number is too large".to_owned(),
        _ => format!("wanted a whole number, {} or more", if "0".parse::<T>().is_ok() { 0 } else { 1 }),
    })
}

/// "auto" and the backends of this build.
pub fn backend_names() -> PossibleValuesParser {
    PossibleValuesParser::new(std::iter::once("auto").chain(registry::all().iter().map(|b| b.name())))
}

/// The precisions of activations.
pub fn activations() -> impl TypedValueParser<Value = Activations> {
    let names = PossibleValuesParser::new(Activations::ALL.iter().map(|a| a.name()));
    names.try_map(|name| Activations::parse(&name).ok_or("not a precision"))
}

/// The types of KV cache.
pub fn kv_types() -> impl TypedValueParser<Value = KvType> {
    let names = PossibleValuesParser::new(KvType::ALL.iter().map(|k| k.name()));
    names.try_map(|name| KvType::parse(&name).ok_or("not a type"))
}
