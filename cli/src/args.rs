//! The whole command line: the subcommands, and what stands before them.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::{
    CliError, ExitCode, bench, chat, completions, devices, diff, examples, graph, importance, inspect,
    output, parity, parse, perplexity, place, quantize, run, selftest, synth, tokenize, trace,
};

/// Run mixture-of-experts language models from GGUF files.
#[derive(Parser, Debug)]
#[command(
    name = "moe-run",
    version,
    about,
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    override_usage = "moe-run [OPTIONS]\n       moe-run <COMMAND> [OPTIONS]"
)]
#[command(after_help = format!("{}\n{}", examples::RUN, ExitCode::table()))]
pub struct Cli {
    /// What to do; `run` where absent
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Say nothing on standard error but warnings and errors: no notes, no progress
    #[arg(short, long, global = true, overrides_with = "quiet", help_heading = "Output")]
    pub quiet: bool,

    /// `moe-run …` is `moe-run run …`
    #[command(flatten)]
    pub run: run::Args,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Answer one prompt (the default)
    #[command(after_help = examples::RUN)]
    Run(run::Args),
    /// Hold a conversation
    #[command(after_help = examples::CHAT)]
    Chat(chat::Args),
    /// Answer over HTTP, many requests at once, as OpenAI's API does
    #[cfg(feature = "serve")]
    #[command(after_help = examples::SERVE)]
    Serve(crate::serve::Args),
    /// Turn text into token ids, or messages into a prompt
    #[command(after_help = examples::TOKENIZE)]
    Tokenize(tokenize::Args),
    /// Take a model's raw text apart: content, reasoning, calls of tools
    #[command(after_help = examples::PARSE)]
    Parse(parse::Args),
    /// Look at every layer of a prompt's evaluation: statistics, routing, saved tensors
    #[command(after_help = examples::TRACE)]
    Trace(trace::Args),
    /// Show the op graph, its launches, memory and costs: text, JSON, DOT, HTML
    #[command(after_help = examples::GRAPH)]
    Graph(graph::Args),
    /// Compare saved tensors
    #[command(after_help = examples::DIFF)]
    Diff(diff::Args),
    /// Name the first operation that differs from another backend or from saved stages
    #[command(after_help = examples::PARITY)]
    Parity(parity::Args),
    /// Show which device would hold what of a model, and how fast that could be
    #[command(after_help = examples::PLACE)]
    Place(place::Args),
    /// List backends and their devices on this machine
    #[command(after_help = examples::DEVICES)]
    Devices(devices::Args),
    /// Show what a GGUF file holds: metadata, tensors, memory for a context, damage
    #[command(after_help = format!("{}\n{}", examples::INSPECT, examples::architectures()))]
    Inspect(inspect::Args),
    /// Time prompts and generation, beside the memory's limit
    #[command(after_help = examples::BENCH)]
    Bench(bench::Args),
    /// Score how well a model predicts a text; compare saved logits
    #[command(after_help = examples::PERPLEXITY)]
    Perplexity(perplexity::Args),
    /// Write a model in other formats, or within so many bits a weight
    #[command(after_help = examples::QUANTIZE)]
    Quantize(quantize::Args),
    /// Measure on a text how much each column matters, for `quantize`
    #[command(after_help = examples::IMPORTANCE)]
    Importance(importance::Args),
    /// Write a model of real shapes with random weights, for benches and tests
    #[command(after_help = examples::SYNTH)]
    Synth(synth::Args),
    /// Test the backends of this machine against the reference, in under a minute
    #[command(after_help = examples::SELFTEST)]
    Selftest(selftest::Args),
    /// Print a completion script for a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(completions::Args),
}

impl Cli {
    /// Parses the process's arguments. A flag of every command may stand in front of the command, where clap, told to keep
    /// the options of `run` away from there, takes none.
    ///
    /// Errors: clap's, which also stand for help and version.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let flags = arguments.iter().skip(1).take_while(|a| *a == "-q" || *a == "--quiet").count();
        if flags > 0 && arguments.get(1 + flags).is_some_and(|a| !a.as_encoded_bytes().starts_with(b"-")) {
            arguments[1..=1 + flags].rotate_left(flags);
        }
        Cli::try_parse_from(arguments)
    }
}

/// Runs the command that was asked for.
///
/// Errors: the command's.
pub fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    output::set_quiet(cli.quiet);
    match cli.command {
        None => run::run(cli.run),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Chat(args)) => chat::run(args),
        #[cfg(feature = "serve")]
        Some(Command::Serve(args)) => crate::serve::run(args),
        Some(Command::Tokenize(args)) => tokenize::run(args),
        Some(Command::Parse(args)) => parse::run(args),
        Some(Command::Trace(args)) => trace::run(args),
        Some(Command::Graph(args)) => graph::run(args),
        Some(Command::Diff(args)) => diff::run(args),
        Some(Command::Parity(args)) => parity::run(args),
        Some(Command::Place(args)) => place::run(args),
        Some(Command::Devices(args)) => devices::run(args),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Perplexity(args)) => perplexity::run(args),
        Some(Command::Quantize(args)) => quantize::run(args),
        Some(Command::Importance(args)) => importance::run(args),
        Some(Command::Synth(args)) => synth::run(args),
        Some(Command::Selftest(args)) => selftest::run(args),
        Some(Command::Completions(args)) => completions::run(args),
    }
}
