//! The error of a command: a cause and the exit code that it means.

use std::{error::Error, io, path::Path};

use moe_run_backends::{
    BackendError, generate::GenerateError, partial_file::is_refusal, sampler::SamplerError,
};
use moe_run_graph::{
    ModelError, architectures::LowerError, config::ConfigError, gguf::GgufError, place::PlaceError,
    quantize::PlanError, shown::shown,
};
use moe_run_inspect::sensitivity::SensitivityError;
use moe_run_inspect::taps::{save::SaveError, select::SelectError, tensor_file::TensorFileError};
use moe_run_text::{chat::ChatError, constraint::ConstraintError, tokenizer::TokenizerError};

use crate::exit::ExitCode;

type Cause = Box<dyn Error + Send + Sync>;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Arguments or input that are not valid.
    #[error(transparent)]
    BadInput(Cause),
    /// Something that is not there or not supported.
    #[error(transparent)]
    Unsupported(Cause),
    /// A failure while running.
    #[error(transparent)]
    Failed(Cause),
    /// Standard output could not be written.
    #[error("standard output: {0}")]
    Stdout(io::Error),
    /// A second Ctrl-C, or one outside of a generation.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// Arguments or input that are not valid: exit code 2.
    pub fn bad_input(cause: impl Into<Cause>) -> CliError {
        CliError::BadInput(cause.into())
    }

    /// Something that is not there or not supported: exit code 3.
    pub fn unsupported(cause: impl Into<Cause>) -> CliError {
        CliError::Unsupported(cause.into())
    }

    /// A failure while running: exit code 4.
    pub fn failed(cause: impl Into<Cause>) -> CliError {
        CliError::Failed(cause.into())
    }

    /// A file that cannot be read: exit code 2.
    pub fn unreadable(path: &Path, source: &io::Error) -> CliError {
        CliError::bad_input(format!("{}: cannot read: {source}", path.display()))
    }

    /// A file that cannot be written: exit code 4; or that must not be, as the command reads it: exit code 2.
    pub fn unwritable(path: &Path, source: &io::Error) -> CliError {
        if is_refusal(source) {
            return CliError::bad_input(format!("{}: {source}", path.display()));
        }
        CliError::failed(format!("{}: cannot write: {source}", path.display()))
    }

    /// The exit code that the error means.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            CliError::BadInput(_) => ExitCode::BadInput,
            CliError::Unsupported(_) => ExitCode::Unsupported,
            CliError::Failed(_) => ExitCode::Failed,
            CliError::Stdout(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
            CliError::Stdout(_) => ExitCode::Failed,
            CliError::Interrupted => ExitCode::Interrupted,
        }
    }
}

impl From<GgufError> for CliError {
    fn from(error: GgufError) -> CliError {
        match error {
            GgufError::TensorType { .. } => CliError::unsupported(error),
            GgufError::Changed { .. } => CliError::failed(error),
            _ => CliError::bad_input(error),
        }
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> CliError {
        match error {
            ModelError::Gguf(error) => error.into(),
            ModelError::Lower { ref source, .. }
                if matches!(
                    **source,
                    LowerError::Config(ConfigError::Architecture { .. })
                        | LowerError::TensorType { .. }
                        | LowerError::Unsupported { .. }
                ) =>
            {
                CliError::unsupported(error)
            }
            ModelError::Lower { .. } => CliError::bad_input(error),
        }
    }
}

impl From<BackendError> for CliError {
    fn from(error: BackendError) -> CliError {
        match error {
            BackendError::UnknownBackend { .. }
            | BackendError::NoBackend { .. }
            | BackendError::NoDevice { .. }
            | BackendError::Unsupported { .. }
            | BackendError::Option { .. } => CliError::unsupported(error),
            // Memory, as out of memory is.
            BackendError::Place(PlaceError::TooSmall { .. }) => CliError::failed(error),
            BackendError::Weight { .. } | BackendError::ContextFull { .. } | BackendError::Place(_) => {
                CliError::bad_input(error)
            }
            _ => CliError::failed(error),
        }
    }
}

impl From<GenerateError> for CliError {
    fn from(error: GenerateError) -> CliError {
        match error {
            GenerateError::Backend(error) => error.into(),
            GenerateError::Sampler(error) => error.into(),
            GenerateError::Constraint(error) => CliError::failed(error),
        }
    }
}

impl From<TokenizerError> for CliError {
    fn from(error: TokenizerError) -> CliError {
        match error {
            TokenizerError::Model { .. } | TokenizerError::PreTokenizer { .. } => {
                CliError::unsupported(error)
            }
            _ => CliError::bad_input(error),
        }
    }
}

impl From<PlanError> for CliError {
    fn from(error: PlanError) -> CliError {
        match error {
            PlanError::TensorType { .. } => CliError::unsupported(error),
            _ => CliError::bad_input(error),
        }
    }
}

impl From<SensitivityError> for CliError {
    fn from(error: SensitivityError) -> CliError {
        match error {
            SensitivityError::Backend(error) => error.into(),
            SensitivityError::SharedState { .. } | SensitivityError::Fused { .. } => {
                CliError::unsupported(error)
            }
            _ => CliError::bad_input(error),
        }
    }
}

impl From<SelectError> for CliError {
    fn from(error: SelectError) -> CliError {
        CliError::bad_input(error)
    }
}

impl From<SaveError> for CliError {
    fn from(error: SaveError) -> CliError {
        match error {
            SaveError::Exists { .. } | SaveError::NotADirectory { .. } => CliError::bad_input(error),
            SaveError::Io { ref path, ref source } if is_refusal(source) => {
                CliError::unwritable(path, source)
            }
            _ => CliError::failed(error),
        }
    }
}

impl From<TensorFileError> for CliError {
    fn from(error: TensorFileError) -> CliError {
        CliError::bad_input(error)
    }
}

impl From<ChatError> for CliError {
    fn from(error: ChatError) -> CliError {
        CliError::bad_input(error)
    }
}

impl From<ConstraintError> for CliError {
    fn from(error: ConstraintError) -> CliError {
        match error {
            ConstraintError::Rule { .. } | ConstraintError::Size { .. } | ConstraintError::NoEnd => {
                CliError::bad_input(error)
            }
            _ => CliError::failed(error),
        }
    }
}

impl From<SamplerError> for CliError {
    fn from(error: SamplerError) -> CliError {
        match error {
            SamplerError::Option { .. } => CliError::bad_input(error),
            _ => CliError::failed(error),
        }
    }
}

/// Writes an error and its causes to standard error, a line each.
pub fn report(error: &CliError) {
    let mut text = format!("error: {}", shown(error));
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // An error that already quotes its cause is not repeated.
        let cause_text = cause.to_string();
        if !last.contains(&cause_text) {
            text.push_str(&format!("\n  caused by: {}", shown(&cause_text)));
        }
        last = cause_text;
        source = cause.source();
    }
    crate::output::say(&text);
}
