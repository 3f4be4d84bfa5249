//! `moe-run parse`: what a model wrote → content, reasoning and calls of tools, as a chat template's format has them.

use std::path::PathBuf;

use moe_run_graph::shown::shown_json;
use moe_run_text::{
    chat::{ChatInput, ChatTemplate},
    toolcalls::{Answer, Calls, Delta, Format, Parser, Syntax},
};
use serde_json::{Map, Value, json};

use crate::{
    CliError, ExitCode,
    common::ModelArgs,
    inputs, messages, output,
    prompt::{read_template, template_var},
};

/// Arguments of `parse`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// File that holds what the model wrote, control tokens spelled out, the token that ends its turn left out; standard input
    /// where absent
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Which model's template
    #[command(flatten)]
    pub model: ModelArgs,

    /// File with a Jinja chat template, instead of a model's; no model is opened
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub chat_template: Option<PathBuf>,

    /// JSON file with the tools that the model was given: an array, or an object with `tools`
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,

    /// JSON file with the messages that the text answers, as `tokenize` reads them: the prompt says whether the text begins
    /// inside of the reasoning [default: one question]
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,

    /// Variable of the chat template, its value as JSON or plain text: enable_thinking=false
    #[arg(long, value_name = "NAME=VALUE", value_parser = template_var)]
    pub template_var: Vec<(String, Value)>,

    /// The text was cut off by a limit: a call that does not end is left out, where it else would be content
    #[arg(long)]
    pub unfinished: bool,

    /// Print what each piece of the text adds, one JSON object a line, as a client that streams gets it
    #[arg(long)]
    pub deltas: bool,
}

/// Parses one text.
///
/// Errors: a file cannot be read or is not valid; the template refuses the messages.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let template = match &args.chat_template {
        Some(path) => read_template(path)?,
        None => ChatTemplate::from_metadata(args.model.open_file()?.metadata())?,
    };
    let mut input = match &args.messages {
        Some(path) => {
            inputs::add(path, "the messages' file")?;
            messages::read_messages(path, true)?
        }
        None => ChatInput::conversation([("user", "?")]),
    };
    if let Some(path) = &args.tools {
        input.tools = Some(messages::read_tools(path)?);
    }
    input.extra.extend(args.template_var.iter().cloned().collect::<Map<_, _>>());
    let text = match &args.file {
        Some(path) => inputs::read_text(path, "the text")?,
        None => inputs::read_stdin()?,
    };
    let prompt = template.render_text(&input).map_err(|error| match &args.messages {
        Some(path) => messages::explain(path, &template, &input, &error),
        None => error.into(),
    })?;
    let syntax = Syntax::of(&template);
    say_syntax(&syntax, &prompt);
    let mut parser = Parser::new(&syntax, &prompt, input.tools.as_ref(), Calls::Whole);
    let mut answer = Answer::default();
    let mut add = |deltas: Vec<Delta>| -> Result<(), CliError> {
        for delta in &deltas {
            answer.add(delta);
            if args.deltas {
                output::exact(&(shown_json(&line(delta).to_string()) + "\n"))?;
            }
        }
        Ok(())
    };
    // A word is about what a token is.
    for piece in text.split_inclusive(char::is_whitespace) {
        add(parser.push(piece))?;
    }
    add(parser.finish(!args.unfinished))?;
    if !args.deltas {
        output::exact(&(shown_json(&report(&answer)) + "\n"))?;
    }
    if let Some(name) = parser.cut_call() {
        let name = if name == "?" { "a tool whose name is cut off, too".to_owned() } else { name };
        output::note(&format!("the text ends inside of a call of {name}, which is left out"));
    }
    Ok(ExitCode::Ok)
}

/// Says how the text is read.
fn say_syntax(syntax: &Syntax, prompt: &str) {
    if syntax.format == Format::Plain {
        output::warning(
            "the chat template shows no way of calling tools that is known: nothing is read as a call",
        );
    } else {
        output::note(&format!("format: {}", syntax.format.name()));
    }
    if syntax.is_inside_reasoning(prompt) {
        output::note("the prompt has begun the reasoning");
    }
}

/// A delta as it is printed.
fn line(delta: &Delta) -> Value {
    match delta {
        Delta::Reasoning(text) => json!({"reasoning_content": text}),
        Delta::Content(text) => json!({"content": text}),
        Delta::CallBegin { index, name } => json!({"tool_call": {"index": index, "name": name}}),
        Delta::CallArguments { index, text } => json!({"tool_call": {"index": index, "arguments": text}}),
        Delta::CallEnd { index } => json!({"tool_call": {"index": index, "complete": true}}),
    }
}

/// The whole answer. Arguments stand as the model wrote them, so that no number loses digits.
fn report(answer: &Answer) -> String {
    let string = |text: &str| Value::from(text).to_string();
    let calls: Vec<String> = answer
        .calls
        .iter()
        .map(|call| format!("\n    {{\"name\": {}, \"arguments\": {}}}", string(&call.name), call.arguments))
        .collect();
    let end = if calls.is_empty() { "" } else { "\n  " };
    format!(
        "{{\n  \"content\": {},\n  \"reasoning_content\": {},\n  \"tool_calls\": [{}{end}]\n}}",
        string(&answer.content),
        string(&answer.reasoning),
        calls.join(",")
    )
}

#[cfg(test)]
mod tests {
    use moe_run_text::toolcalls::Call;

    use super::*;

    #[test]
    fn a_report_is_json_with_every_digit() {
        let call =
            Call { name: "a\"b".to_owned(), arguments: "{\"n\": 123456789012345678901234567890}".to_owned() };
        let answer =
            Answer { content: "x\n".to_owned(), calls: vec![call.clone(), call], ..Answer::default() };
        let text = report(&answer);
        assert!(text.contains("123456789012345678901234567890"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((value["content"].as_str(), value["reasoning_content"].as_str()), (Some("x\n"), Some("")));
        assert_eq!(value["tool_calls"][1]["name"], "a\"b");
        assert_eq!(
            serde_json::from_str::<Value>(&report(&Answer::default())).unwrap()["tool_calls"],
            json!([])
        );
    }
}
