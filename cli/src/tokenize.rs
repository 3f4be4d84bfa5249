//! `moe-run tokenize`: text → ids and pieces, or messages → the rendered prompt. A vocabulary-only file will do.

use std::path::{Path, PathBuf};

use moe_run_graph::{gguf::GgufFile, ids::TokenId, shown::shown_json};
use moe_run_text::{
    chat::ChatTemplate,
    tokenizer::{ControlTokens, Tokenizer},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    CliError, ExitCode,
    common::ModelArgs,
    inputs, messages, output,
    prompt::{read_template, tokenizer},
};

/// Arguments of `tokenize`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The text, control tokens in it being read; `-` or a pipe reads standard input, every character of it but a byte order mark
    #[arg(value_name = "TEXT", allow_hyphen_values = true, group = "tokenize_source")]
    pub text: Option<String>,

    /// File that holds the text, every character of it but a byte order mark
    #[arg(short, long, value_name = "FILE", group = "tokenize_source")]
    pub file: Option<PathBuf>,

    /// JSON file with messages: prints the rendered prompt, exactly. An array of messages, or an object with `messages`,
    /// `tools` and whatever else the template is to see (enable_thinking, bos_token, …)
    #[arg(long, value_name = "FILE", group = "tokenize_source")]
    pub messages: Option<PathBuf>,

    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// File with a Jinja chat template, instead of the model's own
    #[arg(long, value_name = "FILE", requires = "messages", conflicts_with_all = ["text", "file"])]
    pub chat_template: Option<PathBuf>,

    /// End the prompt with the messages, without the beginning of an answer
    #[arg(long, requires = "messages", conflicts_with_all = ["text", "file"])]
    pub no_generation_prompt: bool,

    /// Render without tokenizing; with --chat-template no model is opened
    #[arg(long, requires = "messages", conflicts_with_all = ["text", "file", "json"])]
    pub render_only: bool,

    /// Print one JSON object: ids, pieces (an incomplete character as U+FFFD) and the pieces' bytes in hexadecimal digits;
    /// of messages, the rendered text too
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize, Debug)]
struct Report<'a> {
    schema_version: u32,
    /// The rendered prompt, where there were messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    ids: &'a [TokenId],
    /// Incomplete characters as U+FFFD.
    pieces: Vec<String>,
    /// The same pieces exactly: two hexadecimal digits a byte.
    pieces_hex: Vec<String>,
}

impl<'a> Report<'a> {
    fn new(text: Option<&'a str>, ids: &'a [TokenId], tokenizer: &Tokenizer) -> Report<'a> {
        let pieces: Vec<Vec<u8>> = ids.iter().map(|&id| tokenizer.piece(id).unwrap_or_default()).collect();
        Report {
            schema_version: 1,
            text,
            ids,
            pieces: pieces.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect(),
            pieces_hex: pieces.iter().map(|bytes| output::hexadecimal(bytes)).collect(),
        }
    }
}

/// Tokenizes a text, or renders messages.
///
/// Errors: the input or the model's file cannot be read or is not valid.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    match &args.messages {
        Some(path) => render_messages(&args, path),
        None => tokenize(&args),
    }
}

fn tokenize(args: &Args) -> Result<ExitCode, CliError> {
    let text = match (&args.text, &args.file) {
        (Some(text), _) if text != "-" => text.clone(),
        (None, Some(path)) => inputs::read_text(path, "the text")?,
        _ => inputs::read_stdin()?,
    };
    let tokenizer = tokenizer(args.model.open_file()?.metadata())?;
    // BOS and EOS as the file says it, whatever the text begins and ends with.
    let of_text = tokenizer.encode(&text, ControlTokens::Parse)?;
    let bos = tokenizer.leading_bos();
    if bos.is_some() && of_text.first() == bos.as_ref() {
        output::note("the text begins with BOS itself, so there are two; a prompt of --raw gets one");
    }
    let ids: Vec<TokenId> = bos.into_iter().chain(of_text).chain(tokenizer.trailing_eos()).collect();
    if args.json {
        output::json(&Report::new(None, &ids, &tokenizer))?;
    } else {
        let mut table = String::new();
        for &id in &ids {
            let piece = tokenizer.piece(id).unwrap_or_default();
            table.push_str(&format!("{id:>7}  {}\n", quoted(&piece)));
        }
        output::text(&table)?;
    }
    Ok(ExitCode::Ok)
}

fn render_messages(args: &Args, path: &Path) -> Result<ExitCode, CliError> {
    inputs::add(path, "the messages' file")?;
    let input = messages::read_messages(path, !args.no_generation_prompt)?;
    let given = args.chat_template.as_deref().map(read_template).transpose()?;
    let (template, file): (ChatTemplate, Option<GgufFile>) = match given {
        Some(template) if args.render_only => (template, None),
        Some(template) => {
            let file = args.model.open_file()?;
            (template.with_token_variables(file.metadata())?, Some(file))
        }
        None => {
            let file = args.model.open_file()?;
            (ChatTemplate::from_metadata(file.metadata())?, Some(file))
        }
    };
    messages::check_roles(path, &template, &input)?;
    let explain = |error| messages::explain(path, &template, &input, &error);
    let Some(file) = file.filter(|_| !args.render_only) else {
        output::rendered(&template.render_text(&input).map_err(explain)?)?;
        return Ok(ExitCode::Ok);
    };
    let tokenizer = tokenizer(file.metadata())?;
    let rendered = template.render(&input, tokenizer.control_texts()).map_err(explain)?;
    let ids = tokenizer.encode_rendered(&rendered)?;
    if args.json {
        output::json(&Report::new(Some(rendered.text()), &ids, &tokenizer))?;
    } else {
        output::rendered(rendered.text())?;
        output::note(&format!("{} tokens", ids.len()));
    }
    Ok(ExitCode::Ok)
}

/// Bytes in quotes, as in JSON; bytes of incomplete characters as \xNN, so that each token is told from the next.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        // A JSON string begins and ends with a quote.
        let json = shown_json(&Value::from(chunk.valid()).to_string());
        text.push_str(&json[1..json.len() - 1]);
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text + "\""
}
