//! `moe-run completions`: a completion script for a shell, from the same definitions as the help text.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{CliError, ExitCode, output};

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
///
/// Errors: standard output cannot be written.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::Cli::command(), "moe-run", &mut script);
    output::bytes(&script)?;
    Ok(ExitCode::Ok)
}
