//! `moe-run chat`: a conversation. Each turn renders the whole of it; what the KV cache holds already is not evaluated again.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    time::Instant,
};

use moe_run_backends::{BackendError, generate::StopReason, partial_file, sampler::Sampler};
use moe_run_text::{
    chat::{ChatError, ChatInput, ChatTemplate},
    constraint::{Constraint, ConstraintError, Lead, Rule, Vocabulary},
    tokenizer::Tokenizer,
    toolcalls::{Ahead, Answer, Syntax},
};
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Map, Value, json};

use crate::{
    CliError, ExitCode,
    answer::{self, AnswerView},
    common::{BackendArgs, ModelArgs},
    engine::Engine,
    generate::{self, GenerateArgs, generate},
    inputs::{self, BYTE_ORDER_MARK},
    messages, output, output_file,
    prompt::{read_template, template_var},
    sampling::{SamplerArgs, read_back_line},
};

const HELP: &str = "\
/reset        forget the conversation (the system message stays)
/save FILE    write the conversation as JSON, in the place of a file that is there
/load FILE    go on with a conversation from JSON
/tool TEXT    what the tool gave that the model called; the oldest call comes first
/help         this list
/exit         leave, as Ctrl-D does
Ctrl-C ends an answer. A line that ends in \\ goes on in the next one.";

/// Lines of input that are kept for the next conversation.
const HISTORY_LINES: usize = 1000;
/// How the file of them begins: rustyline's.
const HISTORY_HEAD: &[u8] = b"#V2\n";
/// Its option, for errors.
const HISTORY: &str = "--history";

/// Arguments of `chat`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,

    /// File with a Jinja chat template, instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Variable of the chat template, its value as JSON or plain text: enable_thinking=false
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_var)]
    pub template_var: Vec<(String, Value)>,

    /// JSON file with tools that the model may call: an array, or an object with `tools`, as OpenAI's API has them
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,

    /// File that keeps the lines typed [default: moe-run/chat_history in the user's state directory]
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,

    /// What may end an answer
    #[command(flatten)]
    pub generate: GenerateArgs,

    /// How tokens are chosen
    #[command(flatten)]
    pub sampler: SamplerArgs,

    /// What runs it
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// A conversation, as the template sees it.
struct Conversation {
    system: Option<String>,
    messages: Vec<Value>,
    tools: Option<Value>,
    extra: Map<String, Value>,
    /// Calls that no tool has answered: ids and names.
    calls: VecDeque<(String, String)>,
    /// How many calls there were.
    call_count: usize,
}

impl Conversation {
    fn new(system: Option<String>, tools: Option<Value>, extra: Map<String, Value>) -> Conversation {
        let (messages, calls, call_count) = (Vec::new(), VecDeque::new(), 0);
        let mut conversation = Conversation { system, messages, tools, extra, calls, call_count };
        conversation.reset();
        conversation
    }

    fn reset(&mut self) {
        self.calls.clear();
        self.messages = self.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    }

    fn push(&mut self, role: &str, content: &str) {
        self.messages.push(json!({"role": role, "content": content}));
    }

    /// An answer, with the calls in it.
    fn push_answer(&mut self, answer: &Answer) {
        self.messages.push(answer::message(answer, self.call_count));
        for call in &answer.calls {
            self.calls.push_back((answer::call_id(self.call_count), call.name.clone()));
            self.call_count += 1;
        }
    }

    /// What a tool gave for the oldest call. `false` where there is none.
    fn push_result(&mut self, text: &str) -> bool {
        let Some((id, name)) = self.calls.pop_front() else { return false };
        self.messages.push(json!({"role": "tool", "tool_call_id": id, "name": name, "content": text}));
        true
    }

    fn input(&self) -> ChatInput {
        ChatInput {
            messages: Value::Array(self.messages.clone()),
            tools: self.tools.clone(),
            add_generation_prompt: true,
            extra: self.extra.clone(),
        }
    }

    /// Writes what `/load` and `moe-run tokenize --messages` read.
    fn save(&self, path: &Path) -> Result<(), CliError> {
        output_file::check("/save", Some(path))?;
        let mut fields = Map::new();
        fields.insert("messages".to_owned(), Value::Array(self.messages.clone()));
        if let Some(tools) = &self.tools {
            fields.insert("tools".to_owned(), tools.clone());
        }
        fields.extend(self.extra.clone());
        let mut text = serde_json::to_vec_pretty(&fields).map_err(CliError::failed)?;
        text.push(b'\n');
        partial_file::write(path, &text).map_err(|e| CliError::unwritable(path, &e))
    }

    /// Goes on with the messages of a file. What is here stays where they cannot be gone on with.
    fn load<'a>(
        &mut self,
        path: &Path,
        template: &ChatTemplate,
        control_texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), CliError> {
        let ChatInput { messages, tools, extra, .. } = messages::read_messages(path, true)?;
        let messages = match messages {
            Value::Array(messages) => messages,
            other => vec![other],
        };
        let extra = self.extra.clone().into_iter().chain(extra).collect();
        let system = self.system.clone();
        let tools = tools.or_else(|| self.tools.clone());
        let (calls, call_count) = (VecDeque::new(), messages.len());
        let loaded = Conversation { system, messages, tools, extra, calls, call_count };
        messages::check_conversation(path, template, &loaded.input(), control_texts)?;
        *self = loaded;
        Ok(())
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Reset,
    Save(&'a Path),
    Load(&'a Path),
    Tool(&'a str),
    Help,
    Exit,
    /// Why it is no command.
    Wrong(String),
}

impl Line<'_> {
    fn parse(line: &str) -> Line<'_> {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            return Line::Nothing;
        }
        let Some(command) = trimmed.strip_prefix('/') else { return Line::Say(line) };
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let argument = argument.trim();
        match (name, argument) {
            ("save" | "load", "") => Line::Wrong(format!("/{name} wants a file: /{name} FILE")),
            ("save", file) => Line::Save(Path::new(file)),
            ("load", file) => Line::Load(Path::new(file)),
            ("tool", "") => Line::Wrong("/tool wants what the tool gave: /tool TEXT".to_owned()),
            ("tool", text) => Line::Tool(text),
            ("reset", "") => Line::Reset,
            ("help", "") => Line::Help,
            ("exit" | "quit", "") => Line::Exit,
            ("reset" | "help" | "exit" | "quit", _) => {
                Line::Wrong(format!("/{name} takes nothing behind it"))
            }
            _ => Line::Wrong(format!("there is no command /{name}; /help lists them")),
        }
    }
}

/// Where lines come from: the terminal's editor, or a pipe.
struct Input {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    is_terminal: bool,
    /// No line has been read yet.
    at_start: bool,
}

impl Input {
    fn new(history: Option<PathBuf>) -> Result<Input, CliError> {
        let config = rustyline::Config::builder()
            .max_history_size(HISTORY_LINES)
            .and_then(|builder| builder.history_ignore_dups(true))
            .map_err(CliError::failed)?
            .build();
        let mut editor = DefaultEditor::with_config(config).map_err(CliError::failed)?;
        inputs::add_stdin()?;
        let is_terminal = io::stdin().is_terminal();
        if let Some(path) = &history {
            check_history(path)?;
        }
        let history = history.or_else(default_history).filter(|_| is_terminal);
        if let Some(path) = &history {
            inputs::add(path, "the file of the lines typed")?;
            // The first conversation has no history yet; one that cannot be read is only a convenience lost.
            let _ = editor.load_history(path);
        }
        Ok(Input { editor, history, is_terminal, at_start: true })
    }

    /// The next line, with those that a backslash joins to it; `None` at the end. A byte order mark, with which some shells
    /// begin what they send through a pipe, is no part of it.
    fn next(&mut self) -> Result<Option<String>, CliError> {
        let mut text = String::new();
        let mut interrupted = false;
        loop {
            let prompt = match (self.is_terminal, text.is_empty()) {
                (false, _) => "",
                (true, true) => "> ",
                (true, false) => "… ",
            };
            let read = self.editor.readline(prompt);
            let at_start = std::mem::replace(&mut self.at_start, false);
            let without_mark =
                |line: &str| line.strip_prefix(BYTE_ORDER_MARK).filter(|_| at_start).map(str::to_owned);
            match read.map(|line| without_mark(&line).unwrap_or(line)) {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(part) => text.push_str(&format!("{part}\n")),
                    None => {
                        text.push_str(&line);
                        if self.is_terminal && !text.trim().is_empty() {
                            self.remember(&text);
                        }
                        return Ok(Some(text));
                    }
                },
                Err(ReadlineError::Eof) => return Ok((!text.is_empty()).then_some(text)),
                Err(ReadlineError::Interrupted) if interrupted => return Err(CliError::Interrupted),
                Err(ReadlineError::Interrupted) => {
                    interrupted = true;
                    text.clear();
                    output::note("(Ctrl-C again, Ctrl-D or /exit leaves)");
                }
                Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(CliError::bad_input(
                        "standard input: a line is not UTF-8; wanted lines of text",
                    ));
                }
                Err(error) => return Err(CliError::failed(error)),
            }
        }
    }

    fn remember(&mut self, text: &str) {
        let added = self.editor.add_history_entry(text);
        if let (Ok(true), Some(path)) = (added, &self.history) {
            // Written at once, so that a quick end loses nothing; failing is only a convenience lost.
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = self.editor.save_history(path);
        }
    }
}

/// Errors: a file that was named for the history is one that the command reads, or holds something else.
fn check_history(path: &Path) -> Result<(), CliError> {
    output_file::check_inputs(HISTORY, path)?;
    let wrong = |found: &str| {
        CliError::bad_input(format!(
            "{HISTORY} {}: found {found}, wanted a file that an earlier conversation made, or a new one",
            path.display()
        ))
    };
    let Ok(file) = std::fs::metadata(path) else { return Ok(()) };
    if !file.is_file() {
        return Err(wrong("a directory or device"));
    }
    let mut head = Vec::new();
    let opened = File::open(path).map_err(|e| CliError::unreadable(path, &e))?;
    opened
        .take(HISTORY_HEAD.len() as u64)
        .read_to_end(&mut head)
        .map_err(|e| CliError::unreadable(path, &e))?;
    if head.is_empty() || head == HISTORY_HEAD { Ok(()) } else { Err(wrong("another kind of file")) }
}

/// `$XDG_STATE_HOME/moe-run/chat_history`, which is in `~/.local/state` unless set.
fn default_history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    Some(state.join("moe-run/chat_history"))
}

/// Holds a conversation until its input ends.
///
/// Errors: arguments, model, backend, or a failure while running. A turn that the context or the template refuses is said
/// and taken back; the conversation goes on.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    args.sampler.check()?;
    args.backend.check()?;
    let given_template = args.chat_template.as_deref().map(read_template).transpose()?;
    let rule = args.generate.rule()?;
    let tools = args.tools.as_deref().map(messages::read_tools).transpose()?;
    if rule.is_some() && tools.is_some() {
        return Err(CliError::bad_input(generate::RULE_AND_TOOLS));
    }
    let started = Instant::now();
    let model = args.model.open()?;
    Tokenizer::check_kind(model.metadata())?;
    let mut input = Input::new(args.history)?;
    let (mut sampler, sampling_line) = args.sampler.sampler(model.metadata())?;
    let mut engine = Engine::load(model, &args.backend, started)?;
    let template = engine.chat_template(given_template.as_ref())?;
    let held = match rule {
        Some(rule) => {
            let vocabulary = Vocabulary::new(engine.tokenizer()?)?;
            Some(Held { vocabulary, rule, syntax: Syntax::of(&template) })
        }
        None => None,
    };
    // What cannot be held is said before the first question.
    held.as_ref().map(|held| held.constrain(&Lead::default())).transpose()?;
    let how = How { generate: &args.generate, held: held.as_ref() };
    output::note(&sampling_line);
    if let Some(line) = read_back_line(&sampler, engine.session.executable()) {
        output::note(&line);
    }
    let mut conversation = Conversation::new(args.system, tools, args.template_var.into_iter().collect());
    if input.is_terminal {
        output::note("/help lists the commands");
    }
    while let Some(line) = input.next()? {
        match Line::parse(&line) {
            Line::Nothing => {}
            Line::Say(_) if !conversation.calls.is_empty() => output::say(&waiting(&conversation)),
            Line::Say(text) => {
                conversation.push("user", text);
                turn(&mut engine, &template, &mut sampler, how, &mut conversation, 1)?;
            }
            Line::Tool(text) => {
                if !conversation.push_result(text) {
                    output::say("no call waits for a result");
                } else if conversation.calls.is_empty() {
                    turn(&mut engine, &template, &mut sampler, how, &mut conversation, 0)?;
                } else {
                    output::say(&waiting(&conversation));
                }
            }
            Line::Reset => {
                conversation.reset();
                output::say("forgotten");
            }
            Line::Save(path) => match conversation.save(path) {
                Ok(()) => output::say(&format!("saved to {}", path.display())),
                Err(error) => output::say(&format!("error: {error}")),
            },
            Line::Load(path) => {
                let control_texts = engine.tokenizer()?.control_texts();
                match conversation.load(path, &template, control_texts) {
                    Ok(()) => output::say(&format!("{} messages", conversation.messages.len())),
                    Err(error) => output::say(&format!("error: {error}; the conversation is as it was")),
                }
            }
            Line::Help => output::say(HELP),
            Line::Exit => break,
            Line::Wrong(why) => output::say(&why),
        }
    }
    Ok(ExitCode::Ok)
}

/// How answers are generated.
#[derive(Clone, Copy)]
struct How<'a> {
    generate: &'a GenerateArgs,
    /// What each is held to.
    held: Option<&'a Held>,
}

/// What answers are held to.
#[derive(Debug)]
struct Held {
    vocabulary: Vocabulary,
    rule: Rule,
    syntax: Syntax,
}

impl Held {
    fn constrain(&self, lead: &Lead) -> Result<Constraint, ConstraintError> {
        self.vocabulary.constrain(&self.rule, lead)
    }
}

/// Which call waits.
fn waiting(conversation: &Conversation) -> String {
    let name = conversation.calls.front().map_or("", |(_, name)| name);
    format!("the model called {name}: /tool TEXT gives it what the tool gave, /reset forgets all")
}

/// One answer. `taken_back`: the messages at the end that cannot stay where there is none.
fn turn(
    engine: &mut Engine,
    template: &ChatTemplate,
    sampler: &mut Sampler,
    how: How<'_>,
    conversation: &mut Conversation,
    taken_back: usize,
) -> Result<(), CliError> {
    partial_file::check_mapped()?;
    let answered = answer(engine, template, sampler, how, conversation, taken_back);
    partial_file::check_mapped()?;
    match answered {
        Ok(()) => Ok(()),
        Err(TurnError::Refused(why)) => {
            conversation.messages.truncate(conversation.messages.len() - taken_back);
            output::say(&why);
            Ok(())
        }
        Err(TurnError::Fatal(error)) => Err(error),
    }
}

/// Why there is no answer.
enum TurnError {
    /// This question cannot be answered; the conversation can go on without it.
    Refused(String),
    Fatal(CliError),
}

impl<E: Into<CliError>> From<E> for TurnError {
    fn from(error: E) -> TurnError {
        TurnError::Fatal(error.into())
    }
}

fn answer(
    engine: &mut Engine,
    template: &ChatTemplate,
    sampler: &mut Sampler,
    how: How<'_>,
    conversation: &mut Conversation,
    taken_back: usize,
) -> Result<(), TurnError> {
    let tokenizer = engine.tokenizer()?;
    let rendered = template
        .render(&conversation.input(), tokenizer.control_texts())
        .map_err(|error: ChatError| TurnError::Refused(format!("error: {error}")))?;
    let prompt = tokenizer.encode_rendered(&rendered)?;
    let capacity_tokens = engine.session.capacity_tokens();
    if prompt.len() > capacity_tokens {
        let error = BackendError::ContextFull { wanted_tokens: prompt.len(), capacity_tokens };
        return Err(TurnError::Refused(format!("error: {error}, or /reset")));
    }
    let mut args = how.generate.clone();
    let constraint = match how.held {
        Some(held) => {
            let prompt = template.render_text(&conversation.input())?;
            Some(held.constrain(&held.syntax.lead(&prompt, Ahead::Content))?)
        }
        None => None,
    };
    let mut view = match conversation.tools {
        Some(_) => Some(AnswerView::new(template, &conversation.input(), false)?),
        None => None,
    };
    args.spells_control_tokens = view.is_some();
    let Engine { session, tokenizer, .. } = engine;
    let outcome =
        generate(session, tokenizer.as_ref(), sampler, &prompt, &args, constraint, |text| match &mut view {
            Some(view) => view.write(text),
            None => output::exact(text),
        })?;
    let parsed = view.map(|view| view.finish(outcome.stop_reason.is_model_end())).transpose()?;
    output::text("\n")?;
    output::note(&generate::summary(&outcome));
    if outcome.stop_reason == StopReason::Interrupted && outcome.output_tokens.is_empty() {
        conversation.messages.truncate(conversation.messages.len() - taken_back);
    } else if let Some(parsed) = parsed {
        conversation.push_answer(&parsed);
        if !conversation.calls.is_empty() {
            output::say(&waiting(conversation));
        }
    } else {
        conversation.push("assistant", &outcome.text);
    }
    if let Some(failure) = outcome.failure {
        return Err(TurnError::Fatal(failure));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(Line::parse("  "), Line::Nothing);
        assert_eq!(Line::parse(" hi /reset"), Line::Say(" hi /reset"));
        assert_eq!(Line::parse("/reset "), Line::Reset);
        assert_eq!(Line::parse("/save a b.json"), Line::Save(Path::new("a b.json")));
        assert_eq!(Line::parse("/load\tx"), Line::Load(Path::new("x")));
        assert_eq!(Line::parse("/exit"), Line::Exit);
        assert!(matches!(Line::parse("/save"), Line::Wrong(why) if why.contains("FILE")));
        assert!(matches!(Line::parse("/resett"), Line::Wrong(why) if why.contains("/resett")));
        assert!(matches!(Line::parse("/help me"), Line::Wrong(_)));
    }

    #[test]
    fn a_conversation_comes_back_from_its_file() {
        let directory = std::env::temp_dir().join(format!("moe-run-chat-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("chat.json");
        let extra: Map<String, Value> =
            [("enable_thinking".to_owned(), Value::Bool(false))].into_iter().collect();
        let mut conversation = Conversation::new(Some("Be brief.".to_owned()), None, extra);
        conversation.push("user", "naïve \"日本\"\n");
        conversation.push("assistant", "ok");
        conversation.save(&path).unwrap();
        let mut loaded = Conversation::new(None, None, Map::new());
        let template = ChatTemplate::from_source("{{ messages[0].content }}").unwrap();
        loaded.load(&path, &template, []).unwrap();
        assert_eq!(loaded.input(), conversation.input());
        conversation.reset();
        assert_eq!(conversation.messages, [json!({"role": "system", "content": "Be brief."})]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
