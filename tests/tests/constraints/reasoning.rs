//! Rules that begin behind reasoning, in every format.

use std::fs;

use moe_run_tests::fixtures;
use moe_run_text::{
    chat::{ChatInput, ChatTemplate},
    constraint::{Constraint, Lead, Place, Rule, Vocabulary},
    toolcalls::{Ahead, Format, Syntax, parse},
};
use serde_json::{Map, Value, json};

use super::{Random, any_text, feed, tokenizer};

/// Every template, its syntax, and a prompt with tools or without.
pub(super) fn templates(tools: Option<&Value>) -> Vec<(String, Syntax, String)> {
    let folder = fixtures::find("toolcalls/templates").unwrap();
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let of = |path: std::path::PathBuf| {
        let template = ChatTemplate::from_source(&fs::read_to_string(&path).unwrap()).unwrap();
        let messages = json!([{"role": "user", "content": "Do it."}]);
        let extra = Map::new();
        let input = ChatInput { messages, tools: tools.cloned(), add_generation_prompt: true, extra };
        let prompt = template.render_text(&input).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), Syntax::of(&template), prompt)
    };
    files.into_iter().map(of).collect()
}

/// What a model may write in front of its answer; the tags are `lead`'s.
fn reasoned(lead: &Lead, thought: &str) -> String {
    let (open, close) = lead.reasoning.clone().unwrap();
    let open = if lead.place == Place::MayReason { open } else { String::new() };
    format!("{open}{thought}{close}{}", lead.behind)
}

fn constrain(vocabulary: &Vocabulary, schema: &Value, lead: &Lead) -> Constraint {
    vocabulary.constrain(&Rule::JsonSchema(schema.clone()), lead).unwrap()
}

#[test]
fn answers_are_held_behind_reasoning() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, "ü<"]}}, "required": ["n"],
        "additionalProperties": false});
    let mut random = Random(0xC33);
    let end = tokenizer.end_of_generation()[0];
    for (name, syntax, prompt) in templates(None) {
        let lead = syntax.lead(&prompt, Ahead::Content);
        let check = |written: String, thought: &str| {
            let answer = parse(&syntax, &prompt, None, &written, true);
            let value: Value = serde_json::from_str(answer.content.trim())
                .unwrap_or_else(|e| panic!("{name}: {e}: {written:?} is {answer:?}"));
            assert!(value["n"] == 1 || value["n"] == "ü<", "{name}: {written}");
            assert_eq!((answer.reasoning.trim(), answer.calls.len()), (thought, 0), "{name}: {written:?}");
        };
        if lead.place != Place::Reasons {
            let mut constraint = constrain(&vocabulary, &schema, &lead);
            feed(&mut constraint, &tokenizer, &lead.first).unwrap();
            let text = any_text(&mut constraint, &tokenizer, &mut random, &["}"]);
            // Any first token: where the opening tag is among them the model goes on thinking, and need not end.
            if let Some(text) = text.filter(|text| text.starts_with('{')) {
                check(format!("{}{text}", lead.first), "");
            }
        }
        if lead.place == Place::Answers {
            continue;
        }
        for blanks in ["", "\n\n"] {
            let blanks = if lead.behind.is_empty() { blanks } else { "" };
            let mut constraint = constrain(&vocabulary, &schema, &lead);
            let thought = "Well, {\"n\": 2} or </thin 東?";
            let before = reasoned(&lead, thought);
            let inside = before.find('?').unwrap();
            feed(&mut constraint, &tokenizer, &before[..inside]).unwrap();
            assert!(!constraint.allowed().unwrap().contains(end), "{name}: nothing ends in the reasoning");
            assert!(!constraint.is_complete());
            feed(&mut constraint, &tokenizer, &format!("{}{blanks}", &before[inside..])).unwrap();
            assert_eq!(feed(&mut constraint, &tokenizer, "{\"n\": 2}"), Err("2}".to_owned()), "{name}");
            let rest = any_text(&mut constraint, &tokenizer, &mut random, &["}"]).unwrap();
            check(format!("{before}{blanks}{{\"n\": {rest}"), thought);
        }
    }
}

#[test]
fn the_first_tokens_decide_whether_a_model_reasons() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let reasoning = Some(("<think>".to_owned(), "</think>".to_owned()));
    let lead = Lead { place: Place::MayReason, reasoning, ..Lead::default() };
    let begin = |rule: &str| vocabulary.constrain(&Rule::Regex(rule.to_owned()), &lead).unwrap();
    let done = |rule: &str, text: &str| {
        let mut constraint = begin(rule);
        feed(&mut constraint, &tokenizer, text).unwrap_or_else(|rest| panic!("{text:?}: {rest:?}"));
        constraint.is_complete()
    };
    // A rule that begins as the tag does.
    assert!(done("<thin>", "<thin>"));
    assert!(done("<thin>", "<think>ab<thin></think><thin>"));
    assert!(done("<thin>", "<think></think>\n\n<thin>"));
    assert!(done("<thin>", "</think><thin>"));
    assert!(!done("<thin>", "<thi"));
    assert!(!done("a", "<think>a"));
    // Four blanks, and no more; nor anything else in front of the answer.
    assert!(done("a", "<think>x</think> \n\n a"));
    let mut constraint = begin("a");
    assert!(feed(&mut constraint, &tokenizer, "<think>x</think>\n\n\n\n").is_ok());
    assert_eq!(feed(&mut constraint, &tokenizer, "\n"), Err("\n".to_owned()));
    assert_eq!(feed(&mut begin("a"), &tokenizer, "b"), Err("b".to_owned()));
    assert_eq!(feed(&mut begin("a"), &tokenizer, "<think>x</think>b"), Err("b".to_owned()));
    // Blanks that are the answer's.
    assert!(done(" {6}a", "</think>      a"));
}

/// A prompt's end says where the model is.
#[test]
fn prompts_say_where_they_end() {
    for (name, syntax, prompt) in templates(None) {
        let lead = syntax.lead(&prompt, Ahead::Content);
        let reasons =
            ["GLM-4.7-Flash", "MiniMax-M2.", "Cohere2MoE", "deepseek-ai-DeepSeek-V3.2", "tencent-Hy3"];
        if reasons.iter().any(|reasons| name.starts_with(reasons)) {
            assert!(matches!(lead.place, Place::Reasons | Place::Answers), "{name}: {lead:?} {prompt:?}");
        }
        if syntax.format == Format::Harmony {
            assert_eq!(lead.place, Place::MayReason);
            let begun = format!("{prompt}<|channel|>final<|message|>");
            let lead = syntax.lead(&begun, Ahead::Content);
            assert_eq!((lead.place, lead.first.as_str()), (Place::Answers, ""));
            let begun = format!("{prompt}<|channel|>analysis<|message|>");
            assert_eq!(syntax.lead(&begun, Ahead::Content).place, Place::Reasons);
        }
    }
}
