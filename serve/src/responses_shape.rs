//! The shape of `/v1/responses`: items of output, whole or as numbered events with names.

use hyper::body::Bytes;
use moe_run_runtime::engine::EndReason;
use moe_run_text::{tokenizer::Tokenizer, toolcalls::Delta};
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::answer::Shape;
use crate::error::ApiError;
use crate::listener::{Finished, Piece};
use crate::openai::{self, Tokens, new_id};
use crate::responses::REPEATED;
use crate::writer::Writer;

/// The kind of an item that is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Text,
    Reasoning,
    Call,
}

impl Kind {
    /// The type of its part and the field of that, the names of the events of its text; a call has no part.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Text => ("output_text", "text", "response.output_text"),
            Kind::Reasoning => ("reasoning_text", "text", "response.reasoning_text"),
            Kind::Call => ("", "arguments", "response.function_call_arguments"),
        }
    }
}

/// A response.
pub struct Answer {
    id: String,
    created: u64,
    name: String,
    repeated: Map<String, Value>,
    streams: bool,
    /// What tells tokens' texts, where log probabilities are asked for.
    tokenizer: Option<Arc<Tokenizer>>,
    writer: Writer,
    /// Items, the last of which is open where `open` says so.
    items: Vec<Value>,
    open: Option<Kind>,
    /// The text of the open item.
    text: String,
    logprobs: Vec<Value>,
    /// Those of tokens whose text is not told yet.
    untold: Vec<Value>,
    tokens: Option<Tokens>,
    /// Why the response is not complete.
    incomplete: Option<&'static str>,
    is_ended: bool,
    /// Events until now.
    events: u64,
    parts: Vec<Bytes>,
}

impl Answer {
    /// A response without output.
    pub fn new(
        name: String,
        repeated: Map<String, Value>,
        streams: bool,
        tokenizer: Option<Arc<Tokenizer>>,
        writer: Writer,
    ) -> Answer {
        Answer {
            id: new_id("resp_"),
            created: openai::now(),
            name,
            repeated,
            streams,
            tokenizer,
            writer,
            items: Vec::new(),
            open: None,
            text: String::new(),
            logprobs: Vec::new(),
            untold: Vec::new(),
            tokens: None,
            incomplete: None,
            is_ended: false,
            events: 0,
            parts: Vec::new(),
        }
    }

    fn object(&self) -> Value {
        let status = match (self.is_ended, self.incomplete) {
            (false, _) => "in_progress",
            (true, None) => "completed",
            (true, Some(_)) => "incomplete",
        };
        let mut object = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "background": false, "error": null,
            "incomplete_details": self.incomplete.map(|reason| json!({"reason": reason})), "model": self.name,
            "output": self.items, "previous_response_id": null, "store": false, "truncation": "disabled", "service_tier": "default",
            "usage": self.tokens.as_ref().map(Tokens::of_response),
        });
        for name in REPEATED {
            let absent = || match name {
                "metadata" => json!({}),
                "parallel_tool_calls" => json!(true),
                "reasoning" => json!({"effort": null, "summary": null}),
                "text" => json!({"format": {"type": "text"}}),
                "tool_choice" => json!("auto"),
                "top_logprobs" => json!(0),
                _ => Value::Null,
            };
            object[name] = self.repeated.get(name).cloned().unwrap_or_else(absent);
        }
        object["tools"] = self.repeated.get("tools").cloned().unwrap_or_else(|| json!([]));
        object
    }

    /// Adds an event; a whole answer needs none.
    fn event(&mut self, name: &str, fields: Value) {
        if !self.streams {
            return;
        }
        let mut data = json!({"type": name, "sequence_number": self.events});
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        self.events += 1;
        self.parts.push(format!("event: {name}\ndata: {data}\n\n").into());
    }

    /// Where the open item's text stands, and further fields.
    fn place(&self, fields: Value) -> Value {
        let item = self.items.last();
        let mut place = json!({"item_id": item.map(|item| &item["id"]), "output_index": self.items.len().saturating_sub(1)});
        if self.open != Some(Kind::Call) {
            place["content_index"] = json!(0);
        }
        if let (Some(place), Value::Object(fields)) = (place.as_object_mut(), fields) {
            place.extend(fields);
        }
        place
    }

    /// The part of the open item, as far as it has come.
    fn part(&mut self, kind: Kind) -> Value {
        let text = self.text.as_str();
        match kind {
            Kind::Text => {
                let logprobs = std::mem::take(&mut self.logprobs);
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
            }
            Kind::Reasoning | Kind::Call => json!({"type": "reasoning_text", "text": text}),
        }
    }

    /// Begins an item, unless one of this kind that goes on is open.
    fn begin_item(&mut self, kind: Kind, item: Value) {
        if self.open == Some(kind) && kind != Kind::Call {
            return;
        }
        self.close("completed");
        self.items.push(item.clone());
        self.open = Some(kind);
        let index = self.items.len() - 1;
        self.event("response.output_item.added", json!({"output_index": index, "item": item}));
        let (part_type, ..) = kind.words();
        let part = match kind {
            Kind::Text => json!({"type": part_type, "text": "", "annotations": [], "logprobs": []}),
            Kind::Reasoning => json!({"type": part_type, "text": ""}),
            Kind::Call => return,
        };
        let place = self.place(json!({"part": part}));
        self.event("response.content_part.added", place);
    }

    /// More text of the open item.
    fn more(&mut self, text: &str, logprobs: Vec<Value>) {
        let Some(kind) = self.open else { return };
        self.text.push_str(text);
        let mut fields = json!({"delta": text});
        if kind == Kind::Text {
            fields["logprobs"] = Value::Array(logprobs.clone());
            self.logprobs.extend(logprobs);
        }
        let place = self.place(fields);
        self.event(&format!("{}.delta", kind.words().2), place);
    }

    /// Ends the open item.
    fn close(&mut self, status: &str) {
        let Some(kind) = self.open else { return };
        let (_, field, events) = kind.words();
        let mut done = json!({field: self.text});
        match kind {
            Kind::Text => done["logprobs"] = json!(self.logprobs),
            Kind::Call => {
                if let Some(name) = self.items.last().and_then(|item| item.get("name")) {
                    done["name"] = name.clone();
                }
            }
            Kind::Reasoning => {}
        }
        let place = self.place(done);
        self.event(&format!("{events}.done"), place);
        if kind != Kind::Call {
            let part = self.part(kind);
            let place = self.place(json!({"part": part}));
            if let Some(item) = self.items.last_mut() {
                item["content"] = json!([part]);
            }
            self.event("response.content_part.done", place);
        }
        let (text, index) = (std::mem::take(&mut self.text), self.items.len().saturating_sub(1));
        self.open = None;
        let Some(item) = self.items.last_mut() else { return };
        item["status"] = json!(status);
        if kind == Kind::Call {
            item["arguments"] = Value::String(text);
        }
        let item = item.clone();
        self.event("response.output_item.done", json!({"output_index": index, "item": item}));
    }

    fn add(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            match delta {
                Delta::Content(text) => {
                    let item = json!({
                        "id": new_id("msg_"), "type": "message", "status": "in_progress", "role": "assistant", "content": [],
                    });
                    self.begin_item(Kind::Text, item);
                    // All tokens until now stand beside the first text that is told of them.
                    let logprobs = std::mem::take(&mut self.untold);
                    self.more(&text, logprobs);
                }
                Delta::Reasoning(text) => {
                    let item = json!({
                        "id": new_id("rs_"), "type": "reasoning", "status": "in_progress", "summary": [], "content": [],
                    });
                    self.begin_item(Kind::Reasoning, item);
                    self.untold.clear();
                    self.more(&text, Vec::new());
                }
                Delta::CallBegin { index, name } => {
                    let call_id = self.writer.call_id(index, &name);
                    let item = json!({
                        "id": new_id("fc_"), "type": "function_call", "status": "in_progress", "call_id": call_id, "name": name,
                        "arguments": "",
                    });
                    self.begin_item(Kind::Call, item);
                }
                Delta::CallArguments { text, .. } => self.more(&text, Vec::new()),
                Delta::CallEnd { .. } => self.close("completed"),
            }
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.parts)
    }
}

impl Shape for Answer {
    fn begin(&mut self) -> Vec<Bytes> {
        for name in ["response.created", "response.in_progress"] {
            let response = self.object();
            self.event(name, json!({"response": response}));
        }
        self.take()
    }

    fn piece(&mut self, _: usize, piece: Piece) -> Vec<Bytes> {
        let logprobs = self.tokenizer.as_ref().map(|tokenizer| openai::logprobs(tokenizer, &piece.tokens));
        self.untold.extend(logprobs.unwrap_or_default());
        let deltas = self.writer.push(&piece);
        self.add(deltas);
        self.take()
    }

    fn end(&mut self, _: usize, finished: Finished) -> Vec<Bytes> {
        let deltas = self.writer.finish(finished.is_complete());
        self.add(deltas);
        if self.open == Some(Kind::Text) && !self.untold.is_empty() {
            let logprobs = std::mem::take(&mut self.untold);
            self.more("", logprobs);
        }
        let mut tokens = Tokens::default();
        tokens.add(&finished.ended.usage, true, self.writer.reasoning_tokens());
        self.tokens = Some(tokens);
        let is_cut = matches!(finished.ended.reason, EndReason::MaxTokens | EndReason::ContextFull);
        self.incomplete = (is_cut && !finished.is_complete()).then_some("max_output_tokens");
        self.close(if self.incomplete.is_some() { "incomplete" } else { "completed" });
        self.take()
    }

    fn finish(&mut self) -> Vec<Bytes> {
        self.is_ended = true;
        let name = if self.incomplete.is_some() { "response.incomplete" } else { "response.completed" };
        let response = self.object();
        self.event(name, json!({"response": response}));
        self.take()
    }

    fn error(&self, error: &ApiError) -> Bytes {
        let data = json!({
            "type": "error", "sequence_number": self.events, "code": error.code, "message": error.message, "param": error.param,
        });
        format!("event: error\ndata: {data}\n\n").into()
    }

    fn whole(mut self) -> Value {
        self.is_ended = true;
        self.object()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Tools;
    use moe_run_runtime::engine::{Ended, Usage};
    use moe_run_text::{chat::ChatTemplate, toolcalls::Syntax};

    fn answer(streams: bool) -> Answer {
        let template = "{% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{% for c in m.tool_calls %}\
                        <tool_call>{{ c | tojson }}</tool_call>{% endfor %}{% endfor %}";
        let syntax = Syntax::of(&ChatTemplate::from_source(template).unwrap());
        let list = vec![json!({"type": "function", "function": {"name": "a"}})];
        let writer = Writer::new(&syntax, "Hi", &Tools { list, ..Tools::default() }, streams);
        Answer::new("m".into(), Map::new(), streams, None, writer)
    }

    fn finished(reason: EndReason) -> Finished {
        let usage = Usage { prompt_tokens: 10, cached_tokens: 4, output_tokens: 7, ..Usage::default() };
        Finished { ended: Ended { reason, usage, tapped: Vec::new() }, stop_text: None }
    }

    const TEXT: &str =
        "<think>Hm.</think>I look.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>";

    fn without_ids(mut items: Value) -> Value {
        for item in items.as_array_mut().unwrap() {
            for name in ["id", "call_id"] {
                item.as_object_mut().unwrap().remove(name);
            }
        }
        items
    }

    #[test]
    fn items_whole_and_as_events() {
        let mut whole = answer(false);
        whole.piece(0, Piece { text: TEXT.into(), tokens: Vec::new() });
        whole.end(0, finished(EndReason::EndToken));
        let whole = whole.whole();
        let text = json!({"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []});
        let reasoning = json!({"type": "reasoning_text", "text": "Hm."});
        let output = json!([
            {"type": "reasoning", "status": "completed", "summary": [], "content": [reasoning]},
            {"type": "message", "status": "completed", "role": "assistant", "content": [text]},
            {"type": "function_call", "status": "completed", "name": "a", "arguments": "{\"x\": 1}"},
        ]);
        assert_eq!(without_ids(whole["output"].clone()), output);
        assert_eq!((&whole["status"], &whole["object"]), (&json!("completed"), &json!("response")));
        assert_eq!(
            (&whole["usage"]["input_tokens"], &whole["usage"]["total_tokens"]),
            (&json!(10), &json!(17))
        );

        let mut streamed = answer(true);
        let mut parts = streamed.begin();
        for piece in TEXT.chars() {
            parts.extend(streamed.piece(0, Piece { text: piece.into(), tokens: Vec::new() }));
        }
        parts.extend(streamed.end(0, finished(EndReason::EndToken)));
        parts.extend(streamed.finish());
        let events = crate::respond::named_events(&parts);
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        let last = events.last().unwrap();
        assert_eq!(last["type"], "response.completed");
        assert_eq!(without_ids(last["response"]["output"].clone()), output);
        let of = |kind: &str, field: &str| -> String {
            let events = events.iter().filter(|event| event["type"] == kind);
            events.map(|event| event[field].as_str().unwrap()).collect()
        };
        assert_eq!(of("response.output_text.delta", "delta"), "I look.");
        assert_eq!(of("response.output_text.done", "text"), "I look.");
        assert_eq!(of("response.reasoning_text.delta", "delta"), "Hm.");
        assert_eq!(of("response.function_call_arguments.delta", "delta"), "{\"x\": 1}");
        assert_eq!(of("response.function_call_arguments.done", "arguments"), "{\"x\": 1}");
        let done: Vec<&Value> =
            events.iter().filter(|e| e["type"] == "response.output_item.done").map(|e| &e["item"]).collect();
        assert_eq!(json!(done), last["response"]["output"]);
    }

    #[test]
    fn a_text_cut_off_says_so() {
        let mut cut = answer(false);
        cut.piece(0, Piece { text: "Once".into(), tokens: Vec::new() });
        cut.end(0, finished(EndReason::MaxTokens));
        let cut = cut.whole();
        assert_eq!(cut["status"], "incomplete");
        assert_eq!(cut["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(cut["output"][0]["status"], "incomplete");
    }
}
