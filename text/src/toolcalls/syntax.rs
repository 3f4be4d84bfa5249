//! Which way of writing calls and reasoning a chat template shows.

use serde_json::{Map, Value, json};

use super::{Work, blocks, harmony, minimax_m3, tagged};
use crate::chat::{ChatInput, ChatTemplate};

/// Bytes at the end of a prompt in which something may have begun that the answer goes on with.
const TAIL_BYTES: usize = 1024;

/// A way of writing calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// gpt-oss: messages on channels.
    Harmony,
    /// Cohere: blocks, and a list of calls in JSON.
    CohereActions,
    /// Solar-Open: messages, and calls between marks.
    SolarOpen,
    /// Kimi-K2: a section of calls with ids.
    KimiK2,
    /// DeepSeek-V3.1, V3, R1: a section of calls.
    DeepSeekV3,
    /// DeepSeek-V3.2: marked `<invoke>`s.
    Dsml,
    /// MiniMax-M3: one element an argument.
    MiniMaxM3,
    /// MiniMax-M2: `<invoke>`s.
    MiniMaxM2,
    /// Gemma 4: a notation of its own.
    Gemma4,
    /// LFM2: calls of Python.
    Lfm2Pythonic,
    /// Hunyuan 3: keys and values in tags.
    Hy3,
    /// Mistral: names and JSON behind marks.
    MistralArgs,
    /// GigaChat: an object behind a mark.
    GigaChat,
    /// GLM-4.5 and later: keys and values in tags.
    GlmArgKey,
    /// Qwen3-Coder and others: functions and parameters in tags.
    Qwen3Xml,
    /// Hermes, Qwen3, Granite: an object between tags.
    HermesJson,
    /// No way that is known: everything behind the reasoning is content.
    Plain,
}

impl Format {
    /// Every format, in the order in which they are looked for.
    pub const ALL: [Format; 17] = [
        Format::Harmony,
        Format::CohereActions,
        Format::SolarOpen,
        Format::KimiK2,
        Format::DeepSeekV3,
        Format::Dsml,
        Format::MiniMaxM3,
        Format::MiniMaxM2,
        Format::Gemma4,
        Format::Lfm2Pythonic,
        Format::Hy3,
        Format::MistralArgs,
        Format::GigaChat,
        Format::GlmArgKey,
        Format::Qwen3Xml,
        Format::HermesJson,
        Format::Plain,
    ];

    /// Its name: of the family that began it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Harmony => "harmony",
            Format::CohereActions => "cohere-actions",
            Format::SolarOpen => "solar-open",
            Format::KimiK2 => "kimi-k2",
            Format::DeepSeekV3 => "deepseek-v3.1",
            Format::Dsml => "dsml",
            Format::MiniMaxM3 => "minimax-m3",
            Format::MiniMaxM2 => "minimax-m2",
            Format::Gemma4 => "gemma4",
            Format::Lfm2Pythonic => "lfm2-pythonic",
            Format::Hy3 => "hy3",
            Format::MistralArgs => "mistral-args",
            Format::GigaChat => "gigachat",
            Format::GlmArgKey => "glm-arg-key",
            Format::Qwen3Xml => "qwen3-xml",
            Format::HermesJson => "hermes-json",
            Format::Plain => "plain",
        }
    }

    /// Texts of which all are in a template of this format, or in what it renders.
    fn signs(self) -> &'static [&'static str] {
        match self {
            Format::Harmony => &["<|channel|>", "<|message|>"],
            Format::CohereActions => &[blocks::COHERE_CALLS],
            Format::SolarOpen => &[blocks::SOLAR_CALLS, "<|tool_call:begin|>"],
            Format::KimiK2 => &["<|tool_calls_section_begin|>"],
            Format::DeepSeekV3 => &["<｜tool▁calls▁begin｜>"],
            Format::Dsml => &["｜DSML｜"],
            Format::MiniMaxM3 => &[minimax_m3::MARK],
            Format::MiniMaxM2 => &["<minimax:tool_call>"],
            Format::Gemma4 => &["<|tool_call>call:"],
            Format::Lfm2Pythonic => &["<|tool_call_start|>"],
            Format::Hy3 => &["<tool_sep"],
            Format::MistralArgs => &["[TOOL_CALLS]"],
            Format::GigaChat => &["<|function_call|>"],
            Format::GlmArgKey => &["<arg_key>"],
            Format::Qwen3Xml => &["<function=", "<parameter="],
            Format::HermesJson => &["tool_call>"],
            Format::Plain => &[],
        }
    }

    /// The tags that begin calls. `evidence`: the template and what it renders.
    fn openers(self, evidence: &str, suffix: &str) -> Vec<String> {
        let openers: &[&str] = match self {
            Format::CohereActions => &[blocks::COHERE_CALLS],
            Format::SolarOpen => &[blocks::SOLAR_CALLS],
            Format::KimiK2 => &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
            Format::DeepSeekV3 => &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
            Format::Dsml => &["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>", "<｜DSML｜invoke"],
            Format::MiniMaxM3 => return vec![format!("{}<tool_call>", minimax_m3::MARK)],
            Format::MiniMaxM2 => &["<minimax:tool_call>"],
            Format::Gemma4 => &["<|tool_call>"],
            Format::Lfm2Pythonic => &["<|tool_call_start|>"],
            Format::Hy3 => return ["tool_calls", "tool_call"].map(|tag| format!("<{tag}{suffix}>")).to_vec(),
            Format::MistralArgs => &["[TOOL_CALLS]"],
            Format::GigaChat => &["<|function_call|>"],
            Format::GlmArgKey => &["<tool_call>"],
            // What stands around functions comes first.
            Format::Qwen3Xml if evidence.contains("<seed:tool_call>") => &["<seed:tool_call>", "<function="],
            Format::Qwen3Xml => &["<tool_call>", "<function="],
            Format::HermesJson => &["<tool_call>"],
            Format::Harmony | Format::Plain => &[],
        };
        openers.iter().map(|&tag| tag.to_owned()).collect()
    }
}

/// Tags of reasoning that models use; the first of which a template has one of the two.
const REASONING: &[(&str, &str)] = &[
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<think>", "</think>"),
];

/// How a template's model writes: what a [`super::Parser`] has to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Syntax {
    /// How it writes calls.
    pub format: Format,
    /// The tags around its reasoning, where it has such.
    pub reasoning: Option<(String, String)>,
    /// What the name of each tag ends with.
    pub(super) suffix: String,
    /// The tags that begin calls, none of which is a beginning of another.
    pub(super) openers: Vec<String>,
    /// Cohere's older tags are meant.
    pub(super) is_older_cohere: bool,
}

impl Syntax {
    /// The syntax that a template shows: first in how it renders a call, then in its own text, as some do not render calls in
    /// every position, and some refuse the question that is tried here.
    #[must_use]
    pub fn of(template: &ChatTemplate) -> Syntax {
        let rendered = rendered(template);
        let all = format!("{}\n{rendered}", template.source());
        let shows = |evidence: &str| {
            let is_shown = |format: &Format| format.signs().iter().all(|sign| evidence.contains(sign));
            Format::ALL.into_iter().find(is_shown).filter(|format| *format != Format::Plain)
        };
        let format = shows(&rendered).or_else(|| shows(&all)).unwrap_or(Format::Plain);
        let suffix =
            if format == Format::Hy3 { suffix(&rendered, "<tool_sep").unwrap_or_default() } else { "" };
        let reasoning = match format {
            // Their blocks are the format's own.
            Format::Harmony | Format::CohereActions | Format::SolarOpen => None,
            Format::Hy3 => Some((format!("<think{suffix}>"), format!("</think{suffix}>"))),
            _ => REASONING
                .iter()
                .find(|(open, close)| all.contains(open) || all.contains(close))
                .map(|(open, close)| ((*open).to_owned(), (*close).to_owned())),
        };
        let is_older_cohere = all.contains(blocks::COHERE_RESPONSE) && !all.contains(blocks::COHERE_TEXT);
        let openers = format.openers(&all, suffix);
        Syntax { format, reasoning, suffix: suffix.to_owned(), openers, is_older_cohere }
    }

    /// Whether what follows a prompt is inside of reasoning.
    #[must_use]
    pub fn is_inside_reasoning(&self, prompt: &str) -> bool {
        self.reasoning.as_ref().is_some_and(|(open, _)| prompt.trim_end().ends_with(open.as_str()))
    }
}

/// What stands between the name of a tag and its end.
fn suffix<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(tag)?;
    let (suffix, _) = rest.split_once('>')?;
    (suffix.len() < 64 && !suffix.contains(char::is_whitespace)).then_some(suffix)
}

/// What a template makes of a question that a call answers, and of a question, as far as it takes them.
fn rendered(template: &ChatTemplate) -> String {
    let question = json!({"role": "user", "content": "Do it."});
    // An id that Mistral's templates take, too.
    let call = json!({"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}});
    let tool = json!({"type": "function", "function": {
        "name": "look",
        "description": "Looks",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "What"}}, "required": ["at"]},
    }});
    let answer = |content: Value| json!({"role": "assistant", "content": content, "tool_calls": [call]});
    let render = |messages: Value, add_generation_prompt: bool| {
        let input =
            ChatInput { messages, tools: Some(json!([tool])), add_generation_prompt, extra: Map::new() };
        template.render_text(&input).ok()
    };
    let called = [json!(""), Value::Null, json!("I look.")]
        .into_iter()
        .find_map(|content| render(json!([question, answer(content)]), false));
    let asked = render(json!([question]), true);
    called.into_iter().chain(asked).collect::<Vec<String>>().join("\n")
}

/// The end of a prompt.
pub(super) fn tail(prompt: &str) -> &str {
    let mut from = prompt.len().saturating_sub(TAIL_BYTES);
    while !prompt.is_char_boundary(from) {
        from += 1;
    }
    &prompt[from..]
}

/// Reads a whole answer.
pub(super) async fn read(work: &Work) {
    match work.syntax.format {
        Format::Harmony => harmony::read(work).await,
        Format::CohereActions | Format::SolarOpen => blocks::read(work).await,
        _ => tagged::read(work).await,
    }
}
