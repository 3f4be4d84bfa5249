//! Calls that must come: for each format a grammar of what the readers beside it read as calls of a request's tools.
//!
//! Arguments in JSON are held to the tool's schema, whole. Where a format writes values without quotes, each value is: what may
//! only be JSON is held to its schema; a text of an enumeration is one of it; any other text is free up to the tag that ends it,
//! and [`CallsRule::free`] names it where its schema asks for more.
//! Layout and order are what the templates write: arguments in the schema's order, each once.

mod values;
mod writer;

use serde_json::Value;
use thiserror::Error;

use super::{
    Format, Syntax, blocks, minimax_m3,
    schema::{self, Schema},
};
use crate::constraint::{Rule, check_schema};
use values::Parameter;
use writer::{Writer, literal, sequence};

/// Which calls must come, or may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToolChoice<'a> {
    /// Calls of any tools.
    Required,
    /// Calls of this tool.
    Named(&'a str),
    /// Calls of any tools, or in their place an answer: JSON that this schema describes.
    OrAnswer(&'a Value),
}

/// A rule of calls that must come.
#[derive(Clone, PartialEq, Debug)]
pub struct CallsRule {
    /// A grammar.
    pub rule: Rule,
    /// The format's tags: those that are control tokens are text in the grammar
    /// ([`Vocabulary::with_marks`](crate::constraint::Vocabulary::with_marks)).
    pub marks: Vec<String>,
    /// Arguments, `tool.argument`, whose text is free although their schema asks for more.
    pub free: Vec<String>,
}

/// Why calls cannot be held.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum CallsError {
    /// The template shows no way of calling tools.
    #[error("the chat template shows no way of calling tools that is known, so that none can be required")]
    NoFormat,
    /// The request has no tool, or not the named one.
    #[error("no tool {name:?} is given, so that it cannot be called")]
    NoTool {
        /// The name that was wanted; empty where any would do.
        name: String,
    },
    /// The schema of the answer in place of calls cannot be held.
    #[error("{detail}")]
    Answer {
        /// What it is, with the keyword's name where it is one.
        detail: String,
    },
    /// A tool's schema cannot be held.
    #[error("tool {tool:?}: {detail}")]
    Tool {
        /// The tool's name.
        tool: String,
        /// What it is, with the keyword's name where it is one.
        detail: String,
    },
}

/// A tool and the schema of its arguments.
struct Tool<'a> {
    name: &'a str,
    /// An object's.
    arguments: Value,
}

impl<'a> Tool<'a> {
    fn new(name: &'a str, schema: Option<&Value>) -> Result<Tool<'a>, String> {
        if name.is_empty() || !name.chars().all(super::reader::is_name) || name.contains(':') {
            return Err("its name has characters that calls cannot have".to_owned());
        }
        let Some(schema) = schema else {
            return Ok(Tool {
                name,
                arguments: serde_json::json!({"type": "object", "additionalProperties": false}),
            });
        };
        check_schema(schema).map_err(|e| e.to_string())?;
        let mut arguments = schema.as_object().ok_or("its parameters are no schema of an object")?.clone();
        match arguments.get("type") {
            None => drop(arguments.insert("type".to_owned(), "object".into())),
            Some(kind) if kind == "object" => {}
            Some(kind) => return Err(format!("found parameters of type {kind}, wanted an object's")),
        }
        Ok(Tool { name, arguments: Value::Object(arguments) })
    }
}

impl Syntax {
    /// The rule of one call, or of several where `are_parallel` and the format can have them, of the request's tools; it begins
    /// where [`Syntax::lead`] ends in front of calls.
    ///
    /// Errors: the format is not known, no such tool is given, or a schema has what cannot be held.
    pub fn calls(
        &self,
        tools: &Value,
        choice: ToolChoice<'_>,
        are_parallel: bool,
    ) -> Result<CallsRule, CallsError> {
        if self.format == Format::Plain {
            return Err(CallsError::NoFormat);
        }
        let wanted = |name: &str| match choice {
            ToolChoice::Required | ToolChoice::OrAnswer(_) => true,
            ToolChoice::Named(wanted) => wanted == name,
        };
        let mut writer = Writer::default();
        let mut calls = Vec::new();
        for (name, parameters) in schema::functions(Some(tools)).filter(|(name, _)| wanted(name)) {
            let wrong = |detail: String| CallsError::Tool { tool: name.to_owned(), detail };
            let tool = Tool::new(name, parameters).map_err(wrong)?;
            let call = self.call(&mut writer, &tool).map_err(wrong)?;
            calls.push(writer.rule(&call));
        }
        if calls.is_empty() {
            let name = if let ToolChoice::Named(name) = choice { name } else { "" };
            return Err(CallsError::NoTool { name: name.to_owned() });
        }
        let call = writer.rule(&calls.join(" | "));
        let Frame { open, between, close } = self.frame();
        let more = match are_parallel && self.format != Format::Harmony {
            true => format!("({})*", sequence(&[&literal(&between), &call])),
            false => String::new(),
        };
        let mut start = sequence(&[&literal(&open), &call, &more, &literal(&close)]);
        if let ToolChoice::OrAnswer(schema) = choice {
            check_schema(schema).map_err(|e| CallsError::Answer { detail: e.to_string() })?;
            let answer = writer.json(schema);
            start = format!("{start} | {}", sequence(&[&literal(self.content_tags()), &answer]));
        }
        let Writer { rules, free, .. } = writer;
        Ok(CallsRule { rule: Rule::Grammar(format!("start: {start}\n{rules}")), marks: self.marks(), free })
    }

    /// What stands around calls and between them.
    fn frame(&self) -> Frame {
        let frame = |open: &str, between: &str, close: &str| Frame {
            open: open.to_owned(),
            between: between.to_owned(),
            close: close.to_owned(),
        };
        let suffix = &self.suffix;
        match self.format {
            Format::HermesJson => frame("", "\n", ""),
            Format::Qwen3Xml => frame("", "\n", ""),
            Format::GlmArgKey | Format::GigaChat | Format::MistralArgs | Format::Gemma4 | Format::Harmony => {
                frame("", "", "")
            }
            Format::Hy3 => Frame {
                open: format!("<tool_calls{suffix}>\n"),
                between: String::new(),
                close: format!("</tool_calls{suffix}>"),
            },
            Format::KimiK2 => frame("<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>"),
            Format::DeepSeekV3 => frame("<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"),
            Format::Dsml => frame("<｜DSML｜function_calls>\n", "", "</｜DSML｜function_calls>"),
            Format::MiniMaxM2 => frame("<minimax:tool_call>\n", "", "</minimax:tool_call>"),
            Format::MiniMaxM3 => Frame {
                open: format!("{}<tool_call>\n", minimax_m3::MARK),
                between: String::new(),
                close: format!("{}</tool_call>", minimax_m3::MARK),
            },
            Format::Lfm2Pythonic => frame("<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
            Format::CohereActions => frame("<|START_ACTION|>[\n    ", ",\n    ", "\n]<|END_ACTION|>"),
            Format::SolarOpen => frame(blocks::SOLAR_CALLS, "", ""),
            Format::Plain => frame("", "", ""),
        }
    }

    /// One call.
    ///
    /// Errors: what the tool's schema has that cannot be held.
    fn call(&self, writer: &mut Writer, tool: &Tool<'_>) -> Result<String, String> {
        let name = tool.name;
        // What stands in front of arguments in JSON, and behind them.
        let json = |writer: &mut Writer, before: &str, after: &str| -> Result<String, String> {
            let arguments = writer.json(&tool.arguments);
            Ok(sequence(&[&literal(before), &arguments, &literal(after)]))
        };
        let quoted = super::notation::quoted(name);
        match self.format {
            Format::HermesJson => json(
                writer,
                &format!("<tool_call>\n{{\"name\": {quoted}, \"arguments\": "),
                "}\n</tool_call>",
            ),
            Format::GigaChat => {
                json(writer, &format!("<|function_call|>{{\"name\": {quoted}, \"arguments\": "), "}")
            }
            Format::MistralArgs => json(writer, &format!("[TOOL_CALLS]{name}[ARGS]"), ""),
            Format::DeepSeekV3 => {
                json(writer, &format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>"), "<｜tool▁call▁end｜>")
            }
            Format::Harmony => json(
                writer,
                &format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
                "",
            ),
            Format::KimiK2 => {
                let call = json(writer, "<|tool_call_argument_begin|>", "<|tool_call_end|>")?;
                let id = literal(&format!("<|tool_call_begin|>functions.{name}:"));
                Ok(sequence(&[&id, "/[0-9]{1,4}/", &call]))
            }
            Format::CohereActions => {
                let call = json(writer, &format!("\", \"tool_name\": {quoted}, \"parameters\": "), "}")?;
                Ok(sequence(&[&literal("{\"tool_call_id\": \""), "/[0-9]{1,4}/", &call]))
            }
            Format::SolarOpen => {
                let call = json(
                    writer,
                    &format!("<|tool_call:name|>{name}<|tool_call:args|>"),
                    "<|tool_call:end|>",
                )?;
                Ok(sequence(&[&literal("<|tool_call:begin|>"), "/[A-Za-z0-9_-]{1,16}/", &call]))
            }
            Format::Qwen3Xml => {
                let around = self.openers.first().map_or("<tool_call>", String::as_str);
                let tags = Tags {
                    value: ["\n", "\n"],
                    key: ["<parameter=", ">"],
                    close: "</parameter>".to_owned(),
                    behind: "\n",
                };
                let arguments = tags.arguments(writer, tool)?;
                let open = literal(&format!("{around}\n<function={name}>\n"));
                let close = literal(&format!("</function>\n{}", around.replacen('<', "</", 1)));
                Ok(sequence(&[&open, &arguments, &close]))
            }
            Format::GlmArgKey => {
                let tags = Tags {
                    value: ["", ""],
                    key: ["<arg_key>", "</arg_key><arg_value>"],
                    close: "</arg_value>".to_owned(),
                    behind: "",
                };
                let arguments = tags.arguments(writer, tool)?;
                Ok(sequence(&[&literal(&format!("<tool_call>{name}")), &arguments, &literal("</tool_call>")]))
            }
            Format::Hy3 => {
                let suffix = &self.suffix;
                let key = [format!("<arg_key{suffix}>"), format!("</arg_key{suffix}>\n<arg_value{suffix}>")];
                let tags = Tags {
                    value: ["", ""],
                    key: [&key[0], &key[1]],
                    close: format!("</arg_value{suffix}>"),
                    behind: "\n",
                };
                let arguments = tags.arguments(writer, tool)?;
                let open = literal(&format!("<tool_call{suffix}>{name}<tool_sep{suffix}>\n"));
                Ok(sequence(&[&open, &arguments, &literal(&format!("</tool_call{suffix}>\n"))]))
            }
            Format::MiniMaxM2 => {
                let tags = Tags {
                    value: ["", ""],
                    key: ["<parameter name=\"", "\">"],
                    close: "</parameter>".to_owned(),
                    behind: "\n",
                };
                let arguments = tags.arguments(writer, tool)?;
                let open = literal(&format!("<invoke name=\"{name}\">\n"));
                Ok(sequence(&[&open, &arguments, &literal("</invoke>\n")]))
            }
            Format::Dsml => {
                let arguments = dsml(writer, tool)?;
                let open = literal(&format!("<｜DSML｜invoke name=\"{name}\">\n"));
                Ok(sequence(&[&open, &arguments, &literal("</｜DSML｜invoke>\n")]))
            }
            Format::MiniMaxM3 => {
                let mark = minimax_m3::MARK;
                let arguments = values::elements(writer, tool)?;
                let open = literal(&format!("{mark}<invoke name=\"{name}\">"));
                Ok(sequence(&[&open, &arguments, &literal(&format!("{mark}</invoke>\n"))]))
            }
            Format::Gemma4 => {
                let arguments = values::gemma(writer, tool)?;
                Ok(sequence(&[
                    &literal(&format!("<|tool_call>call:{name}")),
                    &arguments,
                    &literal("<tool_call|>"),
                ]))
            }
            Format::Lfm2Pythonic => {
                let arguments = values::keywords(writer, tool)?;
                Ok(sequence(&[&literal(&format!("{name}(")), &arguments, &literal(")")]))
            }
            Format::Plain => Err("its format is not known".to_owned()),
        }
    }

    /// The format's tags, around calls and in front of content, that may be control tokens: what [`CallsRule::marks`] holds,
    /// whatever the tools.
    #[must_use]
    pub fn marks(&self) -> Vec<String> {
        let marks: &[&str] = match self.format {
            Format::Harmony => &["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"],
            Format::CohereActions => {
                &[blocks::COHERE_CALLS, "<|END_ACTION|>", blocks::COHERE_TEXT, blocks::COHERE_RESPONSE]
            }
            Format::SolarOpen => &[
                blocks::SOLAR_CALLS,
                blocks::SOLAR_CONTENT,
                "<|tool_call:begin|>",
                "<|tool_call:name|>",
                "<|tool_call:args|>",
                "<|tool_call:end|>",
            ],
            Format::KimiK2 => &[
                "<|tool_calls_section_begin|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                "<|tool_calls_section_end|>",
            ],
            Format::DeepSeekV3 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
            Format::Dsml => &["｜DSML｜"],
            Format::MiniMaxM3 => &[minimax_m3::MARK, "<tool_call>", "</tool_call>"],
            Format::MiniMaxM2 => &["<minimax:tool_call>", "</minimax:tool_call>"],
            Format::Gemma4 => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            Format::Lfm2Pythonic => &["<|tool_call_start|>", "<|tool_call_end|>"],
            Format::MistralArgs => &["[TOOL_CALLS]", "[ARGS]"],
            Format::GigaChat => &["<|function_call|>"],
            Format::HermesJson => &["<tool_call>", "</tool_call>"],
            Format::Qwen3Xml => &["<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>"],
            Format::GlmArgKey => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            Format::Hy3 => {
                let names = ["tool_calls", "tool_call", "tool_sep", "arg_key", "arg_value"];
                let tag = |name: &str| ["", "/"].map(|slash| format!("<{slash}{name}{}>", self.suffix));
                return names.into_iter().flat_map(tag).collect();
            }
            Format::Plain => &[],
        };
        marks.iter().map(|&mark| mark.to_owned()).collect()
    }
}

/// What stands around all calls, and between two.
struct Frame {
    open: String,
    between: String,
    close: String,
}

/// Tags around keys and values that have no quotes.
struct Tags<'a> {
    key: [&'a str; 2],
    /// Blanks at both ends of a value that are none of it.
    value: [&'a str; 2],
    /// What ends a value.
    close: String,
    behind: &'a str,
}

impl Tags<'_> {
    fn arguments(&self, writer: &mut Writer, tool: &Tool<'_>) -> Result<String, String> {
        let mut arguments = Vec::new();
        for parameter in values::parameters(tool)? {
            let [before, after] = self.key;
            let open = literal(&format!("{before}{}{after}{}", parameter.key, self.value[0]));
            let value = parameter.text(writer, tool, self.value[1], &self.close)?;
            let argument = writer.rule(&sequence(&[&open, &value, &literal(self.behind)]));
            arguments.push(parameter.once(&argument));
        }
        Ok(arguments.join(" "))
    }
}

/// DeepSeek's parameters, which say themselves whether they are texts.
fn dsml(writer: &mut Writer, tool: &Tool<'_>) -> Result<String, String> {
    let mut arguments = Vec::new();
    for parameter in values::parameters(tool)? {
        let Parameter { key, .. } = &parameter;
        let open =
            |is_string: bool| literal(&format!("<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">"));
        let close = "</｜DSML｜parameter>";
        let argument = match parameter.is_text() {
            true => sequence(&[&open(true), &parameter.text(writer, tool, "", close)?, &literal("\n")]),
            false => {
                let value = writer.json(&parameter.schema_alone()?);
                sequence(&[&open(false), &value, &literal(&format!("{close}\n"))])
            }
        };
        let argument = writer.rule(&argument);
        arguments.push(parameter.once(&argument));
    }
    Ok(arguments.join(" "))
}

impl Tool<'_> {
    fn schema(&self) -> Schema<'_> {
        Schema::root(&self.arguments)
    }
}
