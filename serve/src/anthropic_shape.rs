//! Anthropic's shape of an answer: blocks of content, whole or as events with names.

use hyper::body::Bytes;
use moe_run_runtime::engine::{EndReason, Usage};
use moe_run_text::toolcalls::Delta;
use serde_json::{Value, json};

use crate::answer::Shape;
use crate::error::ApiError;
use crate::listener::{Finished, Piece};
use crate::writer::Writer;

/// The kind of a block that is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Text,
    Thinking,
    Call,
}

/// An answer.
#[derive(Debug)]
pub struct Message {
    id: String,
    name: String,
    prompt_tokens: usize,
    streams: bool,
    writer: Writer,
    /// Blocks for the whole answer; of a call its input is text until it is complete.
    blocks: Vec<Value>,
    /// Blocks that were begun, and the kind of the one that is open.
    begun: usize,
    open: Option<Kind>,
    stop_reason: Option<&'static str>,
    stop_text: Option<String>,
    usage: Usage,
}

fn event(name: &str, fields: Value) -> Bytes {
    let mut data = json!({"type": name});
    if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
        data.extend(fields);
    }
    format!("event: {name}\ndata: {data}\n\n").into()
}

impl Message {
    /// An answer without content.
    pub fn new(id: String, name: String, prompt_tokens: usize, streams: bool, writer: Writer) -> Message {
        Message {
            id,
            name,
            prompt_tokens,
            streams,
            writer,
            blocks: Vec::new(),
            begun: 0,
            open: None,
            stop_reason: None,
            stop_text: None,
            usage: Usage::default(),
        }
    }

    fn usage(&self) -> Value {
        let cached = self.usage.cached_tokens;
        json!({
            "input_tokens": self.prompt_tokens - cached.min(self.prompt_tokens), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached, "output_tokens": self.usage.output_tokens,
            "output_tokens_details": {"thinking_tokens": self.writer.reasoning_tokens()},
        })
    }

    fn object(&self, content: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.name, "content": content,
            "stop_reason": self.stop_reason, "stop_sequence": self.stop_text, "usage": self.usage(),
        })
    }

    fn close(&mut self) -> Option<Bytes> {
        self.open.take()?;
        Some(event("content_block_stop", json!({"index": self.begun - 1})))
    }

    /// Begins a block, unless one of this kind that goes on is open.
    fn open(&mut self, kind: Kind, block: Value, parts: &mut Vec<Bytes>) {
        if self.open == Some(kind) && kind != Kind::Call {
            return;
        }
        parts.extend(self.close());
        parts.push(event("content_block_start", json!({"index": self.begun, "content_block": block})));
        self.blocks.push(block);
        self.begun += 1;
        self.open = Some(kind);
    }

    fn more(&mut self, field: &str, delta: &str, text: &str, parts: &mut Vec<Bytes>) {
        if let Some(Value::String(whole)) = self.blocks.last_mut().and_then(|block| block.get_mut(field)) {
            whole.push_str(text);
        }
        let field = if delta == "input_json_delta" { "partial_json" } else { field };
        let delta = json!({"type": delta, field: text});
        parts.push(event("content_block_delta", json!({"index": self.begun - 1, "delta": delta})));
    }

    fn add(&mut self, deltas: Vec<Delta>) -> Vec<Bytes> {
        let mut parts = Vec::new();
        for delta in deltas {
            match delta {
                Delta::Content(text) => {
                    self.open(Kind::Text, json!({"type": "text", "text": ""}), &mut parts);
                    self.more("text", "text_delta", &text, &mut parts);
                }
                Delta::Reasoning(text) => {
                    let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.open(Kind::Thinking, block, &mut parts);
                    self.more("thinking", "thinking_delta", &text, &mut parts);
                }
                Delta::CallBegin { index, name } => {
                    let id = self.writer.call_id(index, &name);
                    let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    self.open(Kind::Call, block, &mut parts);
                    if let Some(block) = self.blocks.last_mut() {
                        block["input"] = Value::String(String::new());
                    }
                }
                Delta::CallArguments { text, .. } => {
                    self.more("input", "input_json_delta", &text, &mut parts)
                }
                Delta::CallEnd { .. } => parts.extend(self.close()),
            }
        }
        // A whole answer needs no events.
        if self.streams { parts } else { Vec::new() }
    }
}

impl Shape for Message {
    fn begin(&mut self) -> Vec<Bytes> {
        vec![event("message_start", json!({"message": self.object(json!([]))})), event("ping", json!({}))]
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Bytes> {
        let deltas = self.writer.push(&piece);
        self.add(deltas)
    }

    fn end(&mut self, _: usize, finished: Finished) -> Vec<Bytes> {
        let deltas = self.writer.finish(finished.is_complete());
        let mut parts = self.add(deltas);
        self.usage = finished.ended.usage;
        self.stop_reason = Some(match finished.is_complete() {
            _ if finished.stop_text.is_some() => "stop_sequence",
            true if self.writer.has_calls() => "tool_use",
            true => "end_turn",
            false if finished.ended.reason == EndReason::ContextFull => "model_context_window_exceeded",
            false => "max_tokens",
        });
        self.stop_text = finished.stop_text;
        if let (Some(part), true) = (self.close(), self.streams) {
            parts.push(part);
        }
        parts
    }

    fn finish(&mut self) -> Vec<Bytes> {
        let delta = json!({"stop_reason": self.stop_reason, "stop_sequence": self.stop_text});
        vec![
            event("message_delta", json!({"delta": delta, "usage": self.usage()})),
            event("message_stop", json!({})),
        ]
    }

    fn error(&self, error: &ApiError) -> Bytes {
        format!("event: error\ndata: {}\n\n", error.anthropic()).into()
    }

    fn whole(mut self) -> Value {
        let mut blocks = std::mem::take(&mut self.blocks);
        for block in &mut blocks {
            // Arguments are one JSON object, unless they were cut off.
            if let Some(Value::String(text)) = block.get("input") {
                block["input"] = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
            }
        }
        self.object(Value::Array(blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Tools;
    use moe_run_runtime::engine::Ended;
    use moe_run_text::{chat::ChatTemplate, toolcalls::Syntax};

    fn message(streams: bool) -> Message {
        let template = "{% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{% for c in m.tool_calls %}\
                        <tool_call>{{ c | tojson }}</tool_call>{% endfor %}{% endfor %}";
        let syntax = Syntax::of(&ChatTemplate::from_source(template).unwrap());
        Message::new(
            "msg_1".into(),
            "m".into(),
            10,
            streams,
            Writer::new(&syntax, "Hi", &Tools::default(), streams),
        )
    }

    fn finished(reason: EndReason) -> Finished {
        let usage = Usage { prompt_tokens: 10, cached_tokens: 4, output_tokens: 7, ..Usage::default() };
        Finished { ended: Ended { reason, usage, tapped: Vec::new() }, stop_text: None }
    }

    const TEXT: &str =
        "<think>Hm.</think>I look.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>";

    #[test]
    fn blocks_whole_and_as_events() {
        let mut whole = message(false);
        assert!(whole.piece(0, Piece { text: TEXT.into(), tokens: Vec::new() }).is_empty());
        whole.end(0, finished(EndReason::EndToken));
        let whole = whole.whole();
        let content = whole["content"].as_array().unwrap();
        assert_eq!(content[0], json!({"type": "thinking", "thinking": "Hm.", "signature": ""}));
        assert_eq!(content[1], json!({"type": "text", "text": "I look."}));
        assert_eq!(
            (&content[2]["type"], &content[2]["name"], &content[2]["input"]),
            (&json!("tool_use"), &json!("a"), &json!({"x": 1}))
        );
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("tool_use"), &Value::Null));
        let usage = json!({
            "input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 0},
        });
        assert_eq!(whole["usage"], usage);

        let mut streamed = message(true);
        let mut parts = streamed.begin();
        for piece in TEXT.chars() {
            parts.extend(streamed.piece(0, Piece { text: piece.into(), tokens: Vec::new() }));
        }
        parts.extend(streamed.end(0, finished(EndReason::EndToken)));
        parts.extend(streamed.finish());
        let events = crate::respond::named_events(&parts);
        let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(
            (kinds[0], kinds[kinds.len() - 2], kinds[kinds.len() - 1]),
            ("message_start", "message_delta", "message_stop")
        );
        // Every block begins, goes on and ends before the next one.
        let mut open = None;
        let mut blocks = Vec::new();
        for event in &events {
            match event["type"].as_str().unwrap() {
                "content_block_start" => {
                    assert!(open.replace(event["index"].clone()).is_none());
                    blocks.push((event["content_block"]["type"].clone(), String::new()));
                }
                "content_block_delta" => {
                    assert_eq!(open.as_ref(), Some(&event["index"]));
                    let delta = &event["delta"];
                    let text = delta["text"]
                        .as_str()
                        .or(delta["thinking"].as_str())
                        .or(delta["partial_json"].as_str());
                    blocks.last_mut().unwrap().1.push_str(text.unwrap());
                }
                "content_block_stop" => assert_eq!(open.take().as_ref(), Some(&event["index"])),
                _ => {}
            }
        }
        assert!(open.is_none());
        let texts: Vec<&str> = blocks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(&texts[..2], ["Hm.", "I look."]);
        assert_eq!(serde_json::from_str::<Value>(texts[2]).unwrap(), json!({"x": 1}));
        assert_eq!(events[events.len() - 2]["usage"], usage);
    }

    #[test]
    fn a_text_cut_off_says_so() {
        let mut cut = message(false);
        cut.piece(0, Piece { text: "Once".into(), tokens: Vec::new() });
        cut.end(0, finished(EndReason::MaxTokens));
        let cut = cut.whole();
        assert_eq!((&cut["stop_reason"], &cut["content"][0]["text"]), (&json!("max_tokens"), &json!("Once")));
    }
}
