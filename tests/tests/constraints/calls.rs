//! Calls that must come: whatever is chosen among the allowed tokens, the reader of the format finds them, and no content.

use std::fs;

use moe_run_graph::gguf::{GgufFile, MetaArray, MetaValue, Metadata};
use moe_run_tests::fixtures;
use moe_run_text::{
    constraint::{Lead, Vocabulary},
    tokenizer::{TokenKind, Tokenizer},
    toolcalls::{Ahead, CallsError, Format, Syntax, ToolChoice, parse},
};
use serde_json::{Value, json};

use super::{Random, any_text, reasoning::templates, tokenizer, validate};

fn tools() -> Value {
    let cases = fs::read_to_string(fixtures::find("toolcalls/few.json").unwrap()).unwrap();
    serde_json::from_str::<Value>(&cases).unwrap()["tools"].clone()
}

/// What ends values in a format.
fn closing(format: Format) -> &'static [&'static str] {
    match format {
        Format::Qwen3Xml | Format::MiniMaxM2 => &["\"", "}", "]", "\n</parameter>"],
        Format::GlmArgKey => &["\"", "}", "]", "</arg_value>"],
        Format::Hy3 => &["\"", "}", "]", "</arg_value:opensource>"],
        Format::Dsml => &["\"", "}", "]", "</｜DSML｜parameter>"],
        Format::MiniMaxM3 => &["\"", "}", "]", "]<]minimax[>["],
        Format::Gemma4 => &["\"", "}", "]", "<|\"|>"],
        Format::Lfm2Pythonic => &["\"", "}", "]", "'"],
        _ => &["\"", "}", "]"],
    }
}

/// The tiny model's tokenizer with some texts as control tokens, in the place of its last words.
fn with_controls(texts: &[String]) -> Tokenizer {
    let file = GgufFile::open(fixtures::tiny_q4_k_m()).unwrap();
    let is_kept = |key: &str| key.starts_with("tokenizer.") && !key.contains("chat_template");
    let mut pairs: Vec<(String, MetaValue)> = file
        .metadata()
        .iter()
        .filter(|(key, _)| is_kept(key))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    for (key, value) in &mut pairs {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(tokens))) => {
                // In front of the three control tokens that the vocabulary ends with.
                let at = tokens.len() - 3 - texts.len();
                for (token, text) in tokens[at..].iter_mut().zip(texts) {
                    *token = text.clone();
                }
            }
            ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(types))) => {
                let at = types.len() - 3 - texts.len();
                types[at..at + texts.len()].fill(3);
            }
            ("tokenizer.ggml.merges", MetaValue::Array(MetaArray::String(merges))) => {
                // The last merges made those words.
                let kept = merges.len() - texts.len();
                merges.truncate(kept);
            }
            _ => {}
        }
    }
    Tokenizer::from_metadata(&Metadata::from_pairs("test", pairs).unwrap()).unwrap()
}

#[derive(Debug)]
struct Case<'a> {
    name: &'a str,
    syntax: &'a Syntax,
    prompt: &'a str,
    tools: &'a Value,
}

/// Some calls with a tokenizer; adds the values and their schemas.
fn check(case: &Case<'_>, tokenizer: &Tokenizer, seed: u64, values: &mut Vec<(Value, Value)>) {
    let Case { name, syntax, prompt, tools } = case;
    let mut random = Random(seed);
    let named = ToolChoice::Named("search");
    for (choice, are_parallel) in
        [(ToolChoice::Required, true), (ToolChoice::Required, false), (named, true), (named, false)]
    {
        let calls = syntax.calls(tools, choice, are_parallel).unwrap_or_else(|e| panic!("{name}: {e}"));
        let vocabulary = Vocabulary::with_marks(tokenizer, &calls.marks).unwrap();
        for _ in 0..6 {
            // Reasoning is another matter: here it is over.
            let lead = Lead { behind: String::new(), ..Lead::default() };
            let mut constraint = vocabulary
                .constrain(&calls.rule, &lead)
                .unwrap_or_else(|e| panic!("{name}: {e}: {:?}", calls.rule));
            let text = any_text(&mut constraint, tokenizer, &mut random, closing(syntax.format));
            let text = text.unwrap_or_else(|| panic!("{name} has no end"));
            let is_inside = syntax.lead(prompt, Ahead::Calls);
            let written = match &is_inside.reasoning {
                Some((_, close)) if is_inside.place == moe_run_text::constraint::Place::Reasons => {
                    format!("{close}{}{text}", is_inside.behind)
                }
                _ => text.clone(),
            };
            let answer = parse(syntax, prompt, Some(tools), &written, true);
            assert!(
                answer.content.trim().is_empty() && answer.open_call.is_none(),
                "{name}: {written:?} is {answer:?}"
            );
            assert!(!answer.calls.is_empty(), "{name}: {written:?} is {answer:?}");
            assert!(are_parallel || answer.calls.len() == 1, "{name}: {written:?}");
            for call in &answer.calls {
                let tool = tools
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|tool| tool["function"]["name"] == call.name.as_str());
                let tool = tool.unwrap_or_else(|| panic!("{name}: {call:?}"));
                assert!(matches!(choice, ToolChoice::Required) || call.name == "search", "{name}: {call:?}");
                let arguments: Value = match serde_json::from_str(&call.arguments) {
                    Ok(arguments) => arguments,
                    // A number of JSON may be as large as it likes.
                    Err(error) if error.to_string().contains("number out of range") => continue,
                    Err(error) => panic!("{name}: {error}: {call:?}"),
                };
                values.push((tool["function"]["parameters"].clone(), arguments));
            }
        }
    }
}

#[test]
fn required_calls_are_read_in_every_format() {
    let tools = tools();
    let plain = tokenizer();
    let mut values = Vec::new();
    let mut formats = std::collections::BTreeSet::new();
    for (name, syntax, prompt) in templates(Some(&tools)) {
        formats.insert(syntax.format.name());
        let case = Case { name: &name, syntax: &syntax, prompt: &prompt, tools: &tools };
        check(&case, &plain, 0xD44, &mut values);
        let marks = syntax.calls(&tools, ToolChoice::Required, false).unwrap().marks;
        let controls = with_controls(&marks);
        assert!(controls.control_texts().any(|text| text == marks[0]), "{name}");
        check(&case, &controls, 0xE55, &mut values);
    }
    assert_eq!(formats.len(), 15, "{formats:?}");
    validate(&values);
}

/// An answer in JSON, or calls: either comes of some choices in every format, and each is read as what it is.
#[test]
fn an_answer_may_come_in_place_of_calls_in_every_format() {
    let tools = tools();
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false});
    let mut values = Vec::new();
    for (name, syntax, prompt) in templates(Some(&tools)) {
        let calls = syntax.calls(&tools, ToolChoice::OrAnswer(&schema), true).unwrap();
        let tokenizer = with_controls(&calls.marks);
        let vocabulary = Vocabulary::with_marks(&tokenizer, &calls.marks).unwrap();
        let mut random = Random(0xA5A);
        let lead = Lead { behind: String::new(), ..Lead::default() };
        let is_inside = syntax.lead(&prompt, Ahead::Calls);
        let (mut answers, mut called) = (0, 0);
        for _ in 0..60 {
            if answers > 1 && called > 1 {
                break;
            }
            let mut constraint = vocabulary.constrain(&calls.rule, &lead).unwrap();
            let text = any_text(&mut constraint, &tokenizer, &mut random, closing(syntax.format));
            let text = text.unwrap_or_else(|| panic!("{name} has no end"));
            let written = match &is_inside.reasoning {
                Some((_, close)) if is_inside.place == moe_run_text::constraint::Place::Reasons => {
                    format!("{close}{}{text}", is_inside.behind)
                }
                _ => text.clone(),
            };
            let answer = parse(&syntax, &prompt, Some(&tools), &written, true);
            match answer.calls.is_empty() {
                true => {
                    answers += 1;
                    let value = serde_json::from_str(answer.content.trim());
                    values
                        .push((schema.clone(), value.unwrap_or_else(|e| panic!("{name}: {e}: {written:?}"))));
                }
                false => {
                    called += 1;
                    assert!(answer.content.trim().is_empty(), "{name}: {written:?} is {answer:?}");
                }
            }
        }
        assert!(answers > 0 && called > 0, "{name}: {answers} answers, {called} with calls");
    }
    validate(&values);
    let refused = json!({"type": "object", "propertyNames": {}});
    let all = templates(None);
    let hermes = &all.iter().find(|(_, syntax, _)| syntax.format == Format::HermesJson).unwrap().1;
    let error = hermes.calls(&tools, ToolChoice::OrAnswer(&refused), true).unwrap_err();
    assert!(
        matches!(&error, CallsError::Answer { detail } if detail.contains("\"propertyNames\"")),
        "{error}"
    );
}

/// A mark that must come is one token.
#[test]
fn marks_come_as_their_tokens() {
    let tools = tools();
    let (_, syntax, _) =
        templates(Some(&tools)).into_iter().find(|(_, syntax, _)| syntax.format == Format::KimiK2).unwrap();
    let calls = syntax.calls(&tools, ToolChoice::Named("now"), false).unwrap();
    let tokenizer = with_controls(&calls.marks);
    let vocabulary = Vocabulary::with_marks(&tokenizer, &calls.marks).unwrap();
    let mut constraint = vocabulary.constrain(&calls.rule, &Lead::default()).unwrap();
    let mut marks = 0;
    while !constraint.is_complete() {
        let ids = super::allowed(&mut constraint, &tokenizer);
        let is_mark = |id| calls.marks.iter().any(|mark| super::piece(&tokenizer, id) == mark.as_bytes());
        // Behind the call's number another digit may come, too.
        let may_go_on = ids.iter().any(|&id| super::piece(&tokenizer, id) == b"0");
        if ids.iter().any(|&id| is_mark(id)) && !may_go_on {
            assert_eq!(
                ids.len(),
                1,
                "{:?}",
                ids.iter().map(|&id| tokenizer.piece_lossy(id)).collect::<Vec<_>>()
            );
            assert_eq!(tokenizer.kind(ids[0]), Some(TokenKind::Control));
            marks += 1;
        }
        marks += usize::from(may_go_on && ids.iter().any(|&id| is_mark(id)));
        constraint.accept(*ids.last().unwrap()).unwrap();
    }
    assert_eq!(marks, calls.marks.len());
}

#[test]
fn calls_that_cannot_be_held_are_refused() {
    let all = templates(None);
    let of = |format: Format| &all.iter().find(|(_, syntax, _)| syntax.format == format).unwrap().1;
    let tool = |name: &str, parameters: Value| json!([{"type": "function", "function": {"name": name, "parameters": parameters}}]);
    let refused = |format, tools: &Value, said: &str| {
        let error = of(format).calls(tools, ToolChoice::Required, false).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    };
    let unique = json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}});
    refused(Format::HermesJson, &tool("f", unique.clone()), "\"uniqueItems\"");
    refused(Format::Qwen3Xml, &tool("f", unique), "\"uniqueItems\"");
    refused(Format::Qwen3Xml, &tool("f", json!({"anyOf": [{}]})), "\"anyOf\"");
    refused(Format::KimiK2, &tool("f", json!({"type": "string"})), "\"string\"");
    refused(Format::KimiK2, &tool("f", json!(true)), "no schema of an object");
    refused(Format::KimiK2, &tool("a b", json!({})), "its name");
    refused(Format::GlmArgKey, &tool("f", json!({"properties": {"a<": {}}})), "\"a<\"");
    refused(Format::GlmArgKey, &tool("f", json!({"required": ["x"]})), "\"x\" is required");
    let close = json!({"properties": {"a": {"enum": ["</arg_value>"]}}});
    refused(Format::GlmArgKey, &tool("f", close), "which ends it");
    let reference = json!({"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}});
    refused(Format::Gemma4, &tool("f", reference), "to no definition");
    let kimi = of(Format::KimiK2);
    assert!(matches!(kimi.calls(&json!([]), ToolChoice::Required, true), Err(CallsError::NoTool { .. })));
    let named = kimi.calls(&tool("f", json!({})), ToolChoice::Named("g"), true);
    assert_eq!(named, Err(CallsError::NoTool { name: "g".to_owned() }));
    // What is not held is named.
    let limited = tool(
        "f",
        json!({"properties": {"a": {"type": "string", "pattern": "^x$"}, "b": {"type": "string"}}}),
    );
    let of_free = |format| of(format).calls(&limited, ToolChoice::Required, false).unwrap().free;
    assert_eq!(of_free(Format::Qwen3Xml), ["f.a"]);
    assert!(of_free(Format::HermesJson).is_empty() && of_free(Format::Gemma4).is_empty());
}
