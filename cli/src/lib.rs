//! The command line `moe-run`: arguments → checked options → the stages of `moe-run-graph` and `moe-run-backends` → text,
//! JSON and an exit code.
//!
//! One file a command, each with `Args` (what clap parses, help included) and `run(Args) -> Result<ExitCode, CliError>`.
//! Options shared by commands are in [`common`]; every exit code is in [`exit`]. Streamed text and JSON go to standard
//! output, all else to standard error. Absent on purpose: any arithmetic of the model.

pub mod announce;
pub mod answer;
pub mod args;
pub mod bench;
pub mod chat;
pub mod common;
pub mod completions;
pub mod demo;
pub mod devices;
pub mod diff;
pub mod engine;
pub mod error;
pub mod examples;
pub mod exit;
pub mod generate;
pub mod graph;
#[cfg(feature = "cuda")]
mod graph_times;
pub mod importance;
pub mod inputs;
pub mod inspect;
pub mod interrupt;
pub mod mapped;
pub mod messages;
pub mod output;
pub mod output_file;
pub mod parity;
pub mod parse;
pub mod perplexity;
pub mod place;
pub mod place_args;
pub mod progress;
pub mod prompt;
pub mod quantize;
pub mod routing;
pub mod run;
pub mod sampling;
pub mod save_args;
pub mod selftest;
#[cfg(feature = "serve")]
pub mod serve;
pub mod synth;
pub mod tokenize;
pub mod trace;
pub mod trace_report;
pub mod wayland;

use moe_run_backends::partial_file;

pub use error::CliError;
pub use exit::ExitCode;

/// Parses the process's arguments, runs the command, reports an error on standard error, and gives the exit code.
pub fn main() -> std::process::ExitCode {
    wayland::look_for_no_compositor();
    let cli = args::Cli::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let done = interrupt::install().and_then(|()| args::dispatch(cli));
    // Whatever came of it, a model's file that was changed meanwhile is the reason or makes it worthless.
    let done = match (done, partial_file::check_mapped()) {
        (Ok(_) | Err(CliError::Failed(_)), Err(changed)) => Err(changed.into()),
        (done, _) => done,
    };
    let code = done.unwrap_or_else(|error| {
        let code = error.exit_code();
        if code != ExitCode::Ok {
            error::report(&error);
        }
        code
    });
    code.into()
}
