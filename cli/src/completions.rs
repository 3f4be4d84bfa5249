//! `moe-run completions`: a completion script for a shell, from the same definitions as the help text.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{CliError, ExitCode, output};

/// The program's name, which the scripts complete for.
const NAME: &str = "moe-run";

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
    clap_complete::generate(args.shell, &mut crate::args::Cli::command(), NAME, &mut script);
    if args.shell == Shell::Bash {
        // The script is made of the texts of this program, and so is UTF-8.
        script = with_one_spelling_of_the_name(&String::from_utf8_lossy(&script)).into_bytes();
    }
    output::bytes(&script)?;
    Ok(ExitCode::Ok)
}

/// clap_complete (4.6.11) writes the hyphen of a program's name as `__` where its bash script says which command was
/// typed, and as `__subcmd__` in the label of the branch for that command, which is therefore never taken. Here the
/// labels get the first spelling.
fn with_one_spelling_of_the_name(script: &str) -> String {
    script.replace(&NAME.replace('-', "__subcmd__"), &NAME.replace('-', "__"))
}
