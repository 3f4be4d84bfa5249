//! `trace --routing …`: where every token was sent, as a file of JSON lines and as a drawing; and texts that are run in
//! chunks for it.

use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use moe_run_backends::partial_file;
use moe_run_graph::{gguf::Metadata, ids::TokenId, shown::shown_json};
use moe_run_inspect::taps::{
    routing::{LayerUse, RoutingHead, RoutingSink, TokenSource, heat_map_svg},
    save::ModelIdentity,
};
use moe_run_text::tokenizer::Tokenizer;
use serde::Serialize;

use crate::{
    CliError,
    engine::Engine,
    output,
    output_file::{self, OutputFile},
    progress,
    prompt::{Prompt, PromptArgs, encode_raw, read_text},
};

const ROUTING: &str = "--routing";
const ROUTING_PLOT: &str = "--routing-plot";

/// What is written about routing.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Trace")]
pub struct RoutingArgs {
    /// Write the experts and weights of every position and layer to this file, or to standard output with `-` (the report
    /// then goes to standard error), as JSON lines: docs/inspection.md. A text from a file (-f) is then run as it is, as
    /// with --raw, in chunks of --ctx-size tokens [default: 512], each from an empty context, as `perplexity` does
    #[arg(long, value_name = "FILE")]
    pub routing: Option<PathBuf>,

    /// Draw how often each expert was used in each layer, as an SVG; texts and `-` as with --routing
    #[arg(long, value_name = "FILE")]
    pub routing_plot: Option<PathBuf>,
}

impl RoutingArgs {
    /// Whether anything is to be written.
    pub fn is_given(&self) -> bool {
        self.routing.is_some() || self.routing_plot.is_some()
    }

    fn stdouts(&self) -> usize {
        [&self.routing, &self.routing_plot]
            .into_iter()
            .flatten()
            .filter(|path| output_file::is_stdout(path))
            .count()
    }

    /// What can be said of the files before any work; `json` is the report's form.
    ///
    /// Errors: a file that cannot be written; more than one thing for standard output.
    pub fn check(&self, json: bool) -> Result<(), CliError> {
        output_file::check_or_stdout(ROUTING, self.routing.as_deref())?;
        output_file::check_or_stdout(ROUTING_PLOT, self.routing_plot.as_deref())?;
        if self.stdouts() + usize::from(json) > 1 {
            return Err(CliError::bad_input(
                "--routing -, --routing-plot - and --json each want standard output: wanted one of them; give a file to the \
                 others",
            ));
        }
        Ok(())
    }
}

/// What is traced.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a run")]
pub enum TraceInput {
    /// A prompt, in one pass.
    Prompt(Prompt, Option<PathBuf>),
    /// A text as it is, in chunks.
    Text(String, PathBuf),
}

impl TraceInput {
    /// Reads the input. A file's text is run as it is where `routing` is recorded and nothing asks for the chat format.
    ///
    /// Errors: as [`PromptArgs::resolve`].
    pub fn resolve(args: PromptArgs, routing: bool) -> Result<TraceInput, CliError> {
        let asks_for_chat =
            args.system.is_some() || args.chat_template.is_some() || !args.template_var.is_empty();
        match args.file.clone() {
            Some(path) if routing && !asks_for_chat => {
                let text = read_text(&path)?;
                if text.is_empty() {
                    return Err(CliError::bad_input(format!("{}: the text is empty", path.display())));
                }
                Ok(TraceInput::Text(text, path))
            }
            file => Ok(TraceInput::Prompt(args.resolve()?, file)),
        }
    }

    /// Whether it is a text in chunks.
    pub fn is_text(&self) -> bool {
        matches!(self, TraceInput::Text(..))
    }

    /// Whether a file's tokenizer can read the input, as far as that can be told before the model is compiled.
    ///
    /// Errors: as [`Prompt::check_kind`].
    pub fn check_kind(&self, metadata: &Metadata) -> Result<(), CliError> {
        match self {
            TraceInput::Prompt(prompt, _) => prompt.check_kind(metadata),
            TraceInput::Text(..) => Ok(Tokenizer::check_kind(metadata)?),
        }
    }

    /// The tokens, a text's in chunks of `chunk_tokens` and a shorter rest. Where the model begins texts with BOS, BOS
    /// stands in the place of each chunk's first token, as `perplexity` has it.
    ///
    /// Errors: as [`Prompt::encode`].
    pub fn encode(&self, engine: &Engine, chunk_tokens: usize) -> Result<Tokens, CliError> {
        match self {
            TraceInput::Prompt(prompt, file) => {
                let source = match prompt {
                    Prompt::Chat { .. } => TokenSource::Chat,
                    Prompt::Raw(_) => TokenSource::Raw,
                    Prompt::Tokens(_) => TokenSource::Tokens,
                };
                Ok(Tokens { source, file: file.clone(), chunks: vec![prompt.encode(engine)?] })
            }
            TraceInput::Text(text, path) => {
                let tokenizer = engine.tokenizer()?;
                let all = encode_raw(tokenizer, text)?;
                let mut chunks: Vec<Vec<TokenId>> =
                    all.chunks(chunk_tokens).map(<[TokenId]>::to_vec).collect();
                if let Some(bos) = tokenizer.leading_bos() {
                    for first in chunks.iter_mut().filter_map(|chunk| chunk.first_mut()) {
                        *first = bos;
                    }
                }
                if chunks.is_empty() {
                    return Err(CliError::bad_input(format!("{}: the text has no tokens", path.display())));
                }
                Ok(Tokens { source: TokenSource::Text, file: Some(path.clone()), chunks })
            }
        }
    }
}

/// What is evaluated: each chunk from an empty context; there is at least one, and none is empty.
#[derive(Debug)]
pub struct Tokens {
    source: TokenSource,
    file: Option<PathBuf>,
    /// The chunks.
    pub chunks: Vec<Vec<TokenId>>,
}

impl Tokens {
    /// How many tokens.
    #[expect(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    /// All of them, one chunk behind the other.
    pub fn all(&self) -> Vec<TokenId> {
        self.chunks.concat()
    }

    /// The last position of the last chunk.
    pub fn last_position(&self) -> u32 {
        self.chunks.last().map_or(0, |chunk| chunk.len().saturating_sub(1) as u32)
    }
}

/// What is being written.
#[derive(Debug)]
pub struct RoutingFiles {
    lines: Option<OutputFile>,
    plot: Option<OutputFile>,
    stdout_is_taken: bool,
    bar: ProgressBar,
}

impl RoutingFiles {
    /// Opens the files.
    ///
    /// Errors: they cannot be written.
    pub fn create(args: &RoutingArgs) -> Result<RoutingFiles, CliError> {
        let create = |option, path: &Option<PathBuf>| {
            path.as_deref().map(|path: &Path| OutputFile::create(option, path)).transpose()
        };
        Ok(RoutingFiles {
            lines: create(ROUTING, &args.routing)?,
            plot: create(ROUTING_PLOT, &args.routing_plot)?,
            stdout_is_taken: args.stdouts() > 0,
            bar: ProgressBar::hidden(),
        })
    }

    /// Writes the first line.
    ///
    /// Errors: it cannot be written.
    pub fn head(&mut self, engine: &Engine, tokens: &Tokens) -> Result<(), CliError> {
        if tokens.chunks.len() > 1 {
            output::note(&format!(
                "{} tokens in {} chunks of {}, each from an empty context",
                tokens.len(),
                tokens.chunks.len(),
                tokens.chunks[0].len()
            ));
            self.bar = progress::bar(tokens.chunks.len() as u64, "{wide_bar} chunk {pos}/{len}  {eta}");
        }
        let Some(file) = &self.lines else { return Ok(()) };
        let head = RoutingHead::new(
            ModelIdentity::of(&engine.model.file),
            &engine.model.config,
            engine.session.info(),
            tokens.source,
            tokens.file.as_deref(),
            &tokens.chunks,
        );
        if !head.has_experts() {
            output::note(
                "note: the model has no layers of experts: the routing file has only its first line",
            );
        }
        file.write(line(&head)?.as_bytes())
    }

    /// Writes the lines of a chunk.
    ///
    /// Errors: they cannot be written.
    pub fn chunk(&mut self, routing: &RoutingSink, index: usize, tokens: &[TokenId]) -> Result<(), CliError> {
        self.bar.inc(1);
        let Some(file) = &self.lines else { return Ok(()) };
        let lines: Result<Vec<String>, CliError> =
            routing.routed(index, tokens).map(|routed| line(&routed)).collect();
        file.write(lines?.concat().as_bytes())
    }

    /// Draws, gives the files their names, and says whether one of them was standard output.
    ///
    /// Errors: they cannot be written, or the model's file was changed meanwhile.
    pub fn finish(self, usage: &[LayerUse]) -> Result<bool, CliError> {
        self.bar.finish_and_clear();
        partial_file::check_mapped()?;
        if let Some(plot) = &self.plot {
            plot.write(heat_map_svg(usage).as_bytes())?;
        }
        for file in [self.lines, self.plot].into_iter().flatten() {
            file.finish()?;
        }
        Ok(self.stdout_is_taken)
    }
}

fn line(value: &impl Serialize) -> Result<String, CliError> {
    Ok(shown_json(&serde_json::to_string(value).map_err(CliError::failed)?) + "\n")
}
