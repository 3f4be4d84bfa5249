//! `moe-run tokenize`: text → ids and pieces, or messages → the rendered prompt. A vocabulary-only file will do.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use moe_run_graph::{
    chat::{ChatInput, ChatTemplate},
    gguf::GgufFile,
    ids::TokenId,
    shown::shown_json,
    tokenizer::Tokenizer,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    CliError, ExitCode,
    common::ModelArgs,
    inputs, output,
    prompt::{encode_raw, read_template},
};

/// Arguments of `tokenize`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The text, control tokens in it being read; `-` or a pipe reads standard input, every character of it
    #[arg(value_name = "TEXT", allow_hyphen_values = true, group = "tokenize_source")]
    pub text: Option<String>,

    /// File that holds the text, every character of it
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
        (None, Some(path)) => {
            inputs::add(path, "the text")?;
            std::fs::read_to_string(path).map_err(|e| CliError::unreadable(path, &e))?
        }
        _ => {
            inputs::add_stdin()?;
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| CliError::bad_input(format!("standard input: cannot read: {e}")))?;
            text
        }
    };
    let tokenizer = Tokenizer::from_metadata(args.model.open_file()?.metadata())?;
    let ids = encode_raw(&tokenizer, &text)?;
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
    let input = read_messages(path, !args.no_generation_prompt)?;
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
    let Some(file) = file.filter(|_| !args.render_only) else {
        output::exact(&template.render_text(&input)?)?;
        return Ok(ExitCode::Ok);
    };
    let tokenizer = Tokenizer::from_metadata(file.metadata())?;
    let rendered = template.render(&input, tokenizer.control_texts())?;
    let ids = tokenizer.encode_rendered(&rendered)?;
    if args.json {
        output::json(&Report::new(Some(rendered.text()), &ids, &tokenizer))?;
    } else {
        output::exact(rendered.text())?;
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

/// Messages and the template's further variables from a JSON file.
///
/// Errors: it cannot be read, is not JSON, or holds no messages.
pub fn read_messages(path: &Path, add_generation_prompt: bool) -> Result<ChatInput, CliError> {
    let wrong = |what: String| CliError::bad_input(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| CliError::unreadable(path, &e))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
    let mut extra = match value {
        Value::Array(_) => {
            return Ok(ChatInput { messages: value, tools: None, add_generation_prompt, extra: Map::new() });
        }
        Value::Object(fields) => fields,
        _ => return Err(wrong("wanted an array of messages, or an object with \"messages\"".to_owned())),
    };
    let messages =
        extra.remove("messages").ok_or_else(|| wrong("the object has no \"messages\"".to_owned()))?;
    let tools = extra.remove("tools").filter(|tools| !tools.is_null());
    // The option decides; a key of that name in the file only where the option is silent.
    let add_generation_prompt = match extra.remove("add_generation_prompt") {
        Some(Value::Bool(from_file)) => add_generation_prompt && from_file,
        _ => add_generation_prompt,
    };
    Ok(ChatInput { messages, tools, add_generation_prompt, extra })
}
