//! Rules made to cost much: refused, or held, in little time and memory.

use std::time::{Duration, Instant};

use moe_run_graph::ids::TokenId;
use moe_run_text::constraint::{Lead, Rule, Vocabulary};
use serde_json::{Value, json};

use super::tokenizer;

#[test]
fn hostile_rules_are_bounded() {
    let vocabulary = Vocabulary::new(&tokenizer()).unwrap();
    let mut deep = json!({"type": "string"});
    for _ in 0..20_000 {
        // Moved in: `json!` would copy it, by recursion.
        deep = Value::Object([("items".to_owned(), deep)].into_iter().collect());
    }
    let nested = |depth: usize| {
        let mut schema = json!({"type": "string"});
        for _ in 0..depth {
            schema = json!({"type": "array", "items": schema});
        }
        schema
    };
    let many: serde_json::Map<String, Value> =
        (0..20_000).map(|n| (format!("key{n}"), json!({"type": "string", "maxLength": 5000}))).collect();
    let rules = [
        Rule::JsonSchema(nested(90)),
        Rule::JsonSchema(json!({"type": "object", "properties": many})),
        Rule::JsonSchema(json!({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"})),
        Rule::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000})),
        Rule::JsonSchema(json!({"type": "array", "minItems": 1_000_000_000, "items": {}})),
        Rule::JsonSchema(json!({"$ref": "#"})),
        Rule::JsonSchema(json!({"anyOf": vec![json!({"type": "object"}); 5000]})),
        Rule::JsonSchema(json!({"enum": (0..50_000).collect::<Vec<u32>>()})),
        Rule::Regex("(a|b|ab)*".repeat(2000)),
        Rule::Regex("(".repeat(100_000)),
        Rule::Regex("(.*a){60}.{60}".to_owned()),
        Rule::Grammar(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))),
        Rule::Grammar("start: start start | \"a\" | \"\"".to_owned()),
        Rule::Grammar("a".repeat(2 << 20)),
    ];
    for rule in rules.into_iter().chain([Rule::JsonSchema(deep)]) {
        let shown: String = format!("{:?}", matches!(rule, Rule::JsonSchema(_)))
            + " "
            + &{
                let text = match &rule {
                    Rule::Regex(text) | Rule::Grammar(text) => text.clone(),
                    // What is too deep cannot be printed.
                    Rule::JsonSchema(_) => String::new(),
                };
                text.chars().take(40).collect::<String>()
            };
        let began = Instant::now();
        let done = vocabulary.constrain(&rule, &Lead::default()).map(|mut constraint| {
            // Some steps of what was accepted.
            for _ in 0..8 {
                let Ok(allowed) = constraint.allowed() else { break };
                let next = (0..5000).map(TokenId).find(|&id| allowed.contains(id));
                if next.is_none_or(|id| constraint.accept(id).is_err()) || constraint.is_complete() {
                    break;
                }
            }
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{shown}: {took:?} {:?}", done.err());
        // A tree that is too deep for recursion is taken apart without it.
        if let Rule::JsonSchema(schema) = rule {
            let mut open = vec![schema];
            while let Some(mut value) = open.pop() {
                match &mut value {
                    Value::Array(items) => open.append(items),
                    Value::Object(fields) => open.extend(std::mem::take(fields).into_iter().map(|(_, v)| v)),
                    _ => {}
                }
            }
        }
    }
}
