//! The whole command line: the subcommands, and what stands before them.

use clap::{Parser, Subcommand};

use crate::{CliError, ExitCode, completions, synth};

const EXAMPLES: &str = "\
Examples:
  moe-run completions bash > moe-run.bash
";

/// Run mixture-of-experts language models from GGUF files.
#[derive(Parser, Debug)]
#[command(
    name = "moe-run",
    version,
    about,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = format!("{EXAMPLES}\n{}", ExitCode::table()))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write a model of real shapes with random weights, for benches and tests
    Synth(synth::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Runs the command that was asked for.
///
/// Errors: the command's.
pub fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    match cli.command {
        Command::Synth(args) => synth::run(args),
        Command::Completions(args) => completions::run(args),
    }
}
