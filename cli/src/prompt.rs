//! Options that say what the model is asked, shared by the commands that run one.

use std::{
    borrow::Borrow,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use moe_run_graph::{Model, gguf::Metadata, ids::TokenId};
use moe_run_text::{
    chat::{ChatInput, ChatTemplate},
    constraint::Lead,
    tokenizer::{ControlTokens, Tokenizer, TokenizerError},
    toolcalls::{Ahead, Syntax},
};
use serde_json::{Map, Value};

use crate::{
    CliError,
    answer::AnswerView,
    common,
    engine::{Engine, chat_template},
    inputs, messages, output,
};

/// What the model is asked.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Prompt")]
pub struct PromptArgs {
    /// The prompt; `-` reads standard input, as does a pipe without this option
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, group = "prompt_source")]
    pub prompt: Option<String>,

    /// File that holds the prompt; as with a pipe, one line end at its end is not part of it, nor a byte order mark
    #[arg(short, long, value_name = "FILE", group = "prompt_source")]
    pub file: Option<PathBuf>,

    /// The prompt as token ids, as they are: 1,2,3
    #[arg(long, value_name = "IDS", value_delimiter = ',', allow_negative_numbers = true,
          value_parser = common::whole_number::<u32>, group = "prompt_source",
          conflicts_with_all = ["raw", "system", "chat_template", "template_var", "tools"])]
    pub tokens: Vec<u32>,

    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,

    /// Feed the prompt as it is, without the chat template; control tokens in it are read
    #[arg(long, conflicts_with_all = ["system", "chat_template", "template_var", "tools"])]
    pub raw: bool,

    /// File with a Jinja chat template, instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Variable of the chat template, its value as JSON or plain text: enable_thinking=false
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_var)]
    pub template_var: Vec<(String, Value)>,

    /// JSON file with tools that the model may call: an array, or an object with `tools`, as OpenAI's API has them
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
}

/// A prompt that has been read and checked, but not yet encoded.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one prompt is read in a run")]
pub enum Prompt {
    /// Ids as given.
    Tokens(Vec<TokenId>),
    /// Text as it is.
    Raw(String),
    /// One question in the model's chat format.
    Chat {
        /// The question, with a system message where one was given.
        input: ChatInput,
        /// Overrides the file's template.
        template: Option<ChatTemplate>,
    },
}

impl PromptArgs {
    /// Whether a prompt is given by an option.
    pub fn is_given(&self) -> bool {
        self.prompt.is_some() || self.file.is_some() || !self.tokens.is_empty()
    }

    /// Reads and checks the prompt: from options, else from standard input where that is no terminal.
    ///
    /// Errors: there is none, it is empty, or it cannot be read; the template is not valid.
    pub fn resolve(self) -> Result<Prompt, CliError> {
        if !self.tokens.is_empty() {
            return Ok(Prompt::Tokens(self.tokens.into_iter().map(TokenId).collect()));
        }
        let text = match (self.prompt, &self.file) {
            (Some(text), _) if text != "-" => text,
            (None, Some(path)) => read_text(path)?,
            (None, None) if std::io::stdin().is_terminal() => {
                return Err(CliError::bad_input(
                    "no prompt: give one with -p TEXT, -f FILE or --tokens IDS, or through a pipe; \
                     `moe-run chat` holds a conversation, `moe-run --help` lists everything",
                ));
            }
            _ => read_stdin()?,
        };
        if text.is_empty() {
            return Err(CliError::bad_input("the prompt is empty"));
        }
        if self.raw {
            return Ok(Prompt::Raw(text));
        }
        let template = self.chat_template.as_deref().map(read_template).transpose()?;
        let turns =
            self.system.as_deref().map(|s| ("system", s)).into_iter().chain([("user", text.as_str())]);
        let mut input = ChatInput::conversation(turns);
        input.extra = self.template_var.into_iter().collect::<Map<_, _>>();
        input.tools = self.tools.as_deref().map(messages::read_tools).transpose()?;
        Ok(Prompt::Chat { input, template })
    }
}

impl Prompt {
    /// Whether a file's tokenizer can read the prompt, as far as that can be told before the model is compiled.
    ///
    /// Errors: the prompt is text, and the file has no tokenizer, or one of a kind that is not known.
    pub fn check_kind(&self, metadata: &Metadata) -> Result<(), CliError> {
        match self {
            Prompt::Tokens(_) => Ok(()),
            Prompt::Raw(_) | Prompt::Chat { .. } => Ok(Tokenizer::check_kind(metadata)?),
        }
    }

    /// What takes an answer to it apart that may call tools, where it has any.
    ///
    /// Errors: there is no template, or it fails.
    pub fn answer_view(&self, model: &Model, is_silent: bool) -> Result<Option<AnswerView>, CliError> {
        match self {
            Prompt::Chat { input, template } if input.tools.is_some() => {
                let template = chat_template(model, template.as_ref())?;
                AnswerView::new(&template, input, is_silent).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What stands behind the prompt in front of the part of an answer that a rule holds: nothing that is known where the prompt
    /// is no chat's.
    ///
    /// Errors: the file has no template, or it fails.
    pub fn lead(&self, model: &Model) -> Result<Lead, CliError> {
        match self {
            Prompt::Chat { input, template } => {
                let template = chat_template(model, template.as_ref())?;
                Ok(Syntax::of(&template).lead(&template.render_text(input)?, Ahead::Content))
            }
            Prompt::Raw(_) | Prompt::Tokens(_) => Ok(Lead::default()),
        }
    }

    /// Whether the model is given tools.
    pub fn has_tools(&self) -> bool {
        matches!(self, Prompt::Chat { input, .. } if input.tools.is_some())
    }

    /// The prompt's ids for a model.
    ///
    /// Errors: an id outside of the vocabulary; the file has no tokenizer or no template; the template fails.
    pub fn encode(&self, engine: &Engine) -> Result<Vec<TokenId>, CliError> {
        self.encode_with(&engine.model, || engine.tokenizer())
    }

    /// The prompt's ids for a model that is not compiled.
    ///
    /// Errors: as [`Prompt::encode`].
    pub fn encode_for(&self, model: &Model) -> Result<Vec<TokenId>, CliError> {
        self.encode_with(model, || Ok(tokenizer(model.metadata())?))
    }

    /// The prompt's ids, with a tokenizer that is asked for where the prompt is text.
    fn encode_with<T: Borrow<Tokenizer>>(
        &self,
        model: &Model,
        tokenizer: impl FnOnce() -> Result<T, CliError>,
    ) -> Result<Vec<TokenId>, CliError> {
        let ids = match self {
            Prompt::Tokens(ids) => {
                let vocab_size = model.config.vocab_size;
                if let Some(id) = ids.iter().find(|id| id.index() >= vocab_size) {
                    return Err(CliError::bad_input(format!(
                        "--tokens: found {id}, wanted ids below the vocabulary's {vocab_size}"
                    )));
                }
                ids.clone()
            }
            Prompt::Raw(text) => encode_raw(tokenizer()?.borrow(), text)?,
            Prompt::Chat { input, template } => {
                let tokenizer = tokenizer()?;
                let tokenizer = tokenizer.borrow();
                let template = chat_template(model, template.as_ref())?;
                let rendered = template.render(input, tokenizer.control_texts())?;
                tokenizer.encode_rendered(&rendered)?
            }
        };
        if ids.is_empty() {
            return Err(CliError::bad_input("the prompt has no tokens: the chat template renders nothing"));
        }
        Ok(ids)
    }
}

/// The tokenizer of a file; says on standard error what it takes otherwise than the file says it.
///
/// Errors: [`Tokenizer::from_metadata`]'s.
pub fn tokenizer(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
    let tokenizer = Tokenizer::from_metadata(metadata)?;
    for warning in tokenizer.warnings() {
        output::warning(&warning.to_string());
    }
    Ok(tokenizer)
}

/// The ids of a text as it is: control tokens are read, and it begins with the BOS token if the file asks for one.
///
/// Errors: the tokenizer's.
pub fn encode_raw(tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>, CliError> {
    let ids = tokenizer.encode(text, ControlTokens::Parse)?;
    let bos = tokenizer.leading_bos().filter(|bos| ids.first() != Some(bos));
    Ok(bos.into_iter().chain(ids).collect())
}

/// A template file, checked.
///
/// Errors: it cannot be read or is not valid Jinja.
pub fn read_template(path: &Path) -> Result<ChatTemplate, CliError> {
    let source = inputs::read_text(path, "the chat template")?;
    ChatTemplate::from_source(&source).map_err(|e| CliError::bad_input(format!("{}: {e}", path.display())))
}

/// A text file without the line end at its end.
///
/// Errors: it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    Ok(without_line_end(inputs::read_text(path, "the prompt's file")?))
}

/// Standard input without the line end at its end.
///
/// Errors: it cannot be read or is not UTF-8.
pub fn read_stdin() -> Result<String, CliError> {
    Ok(without_line_end(inputs::read_stdin()?))
}

/// Editors and `echo` end a text with a line end that nobody means as part of a prompt.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// `NAME=VALUE`, the value as JSON or else as text.
///
/// Errors: there is no name, or no `=`; the name is that of the messages, which are the prompt.
pub fn template_var(argument: &str) -> Result<(String, Value), String> {
    let (name, value) = argument.split_once('=').ok_or("wanted NAME=VALUE")?;
    if name.is_empty() {
        return Err("wanted NAME=VALUE".to_owned());
    }
    if name == "messages" {
        return Err(
            "the messages are the prompt's own (-p, -f, --system); `moe-run tokenize --messages FILE` \
                    renders others"
                .to_owned(),
        );
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_cut() {
        for (text, cut) in
            [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("\n", ""), ("a\r", "a\r")]
        {
            assert_eq!(without_line_end(text.to_owned()), cut);
        }
    }

    #[test]
    fn template_variables() {
        assert_eq!(template_var("a=false"), Ok(("a".into(), Value::Bool(false))));
        assert_eq!(template_var("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(template_var("a="), Ok(("a".into(), "".into())));
        assert!(template_var("a").is_err() && template_var("=a").is_err());
        assert!(template_var("messages=[]").is_err_and(|why| why.contains("the prompt's own")));
    }
}
