//! Rules made to cost much: refused, or held, in little time and memory.

use std::time::{Duration, Instant};

use moe_run_graph::ids::TokenId;
use moe_run_text::constraint::{Lead, Rule, Vocabulary};
use serde_json::{Value, json};

use super::tokenizer;

/// Under a second was measured for each; the rest is for machines that have more to do.
const LIMIT: Duration = Duration::from_secs(6);

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
        Rule::JsonSchema(
            json!({"properties": (0..9000).map(|n| (n.to_string(), json!({}))).collect::<serde_json::Map<_, _>>()}),
        ),
        Rule::JsonSchema(json!({"anyOf": vec![json!({"type": "object"}); 5000]})),
        Rule::JsonSchema(json!({"enum": (0..50_000).collect::<Vec<u32>>()})),
        Rule::JsonSchema(json!({"enum": (0..20_000).map(|n| format!("{n:020}")).collect::<Vec<_>>()})),
        Rule::JsonSchema(
            json!({"type": "string", "pattern": format!("^({})*$", "a?".repeat(2000) + &"a".repeat(2000))}),
        ),
        Rule::JsonSchema(
            json!({"patternProperties": (0..200).map(|n| (format!("^(a|b)*{n}.{{50}}$"), json!({}))).collect::<serde_json::Map<_, _>>()}),
        ),
        Rule::JsonSchema(json!({"allOf": vec![json!({"type": "string", "pattern": "(x+x+)+y"}); 500]})),
        Rule::Regex("(a|b)(c|d)".repeat(20_000)),
        Rule::Regex("a{50000}".to_owned()),
        Rule::Regex("\\PL{1,3000}x\\PL{1,3000}".to_owned()),
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
        assert!(took < LIMIT, "{shown}: {took:?} {:?}", done.err());
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

/// The program under a limit of memory: a refusal or a text, and never an abort.
#[cfg(unix)]
#[test]
fn hostile_rules_fit_into_little_memory() {
    let directory = tempfile::tempdir().unwrap();
    let deep = "{\"items\":".repeat(20_000) + "{}" + &"}".repeat(20_000);
    let many: Vec<String> = (0..30_000).map(|n| format!("{n:020}")).collect();
    let rules = [
        ("--json-schema", deep, 2),
        ("--json-schema", json!({"enum": many}).to_string(), 0),
        (
            "--json-schema",
            json!({"pattern": "((a{1,1000}){1,1000}){1,1000}", "type": "string"}).to_string(),
            0,
        ),
        ("--json-schema", json!({"$ref": "#"}).to_string(), 2),
        ("--grammar", format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000)), 2),
    ];
    for (option, rule, code) in rules {
        let path = directory.path().join("rule");
        std::fs::write(&path, &rule).unwrap();
        let program = env!("CARGO_BIN_EXE_moe-run-under-test");
        let command = format!(
            "ulimit -v 3000000; exec '{program}' run -p Hi -n 6 --temp 0 --backend cpu {option} '{}'",
            path.display()
        );
        let began = Instant::now();
        let ended = moe_run_tests::cli::run("bash", ["-c", &command]);
        let shown: String = rule.chars().take(50).collect();
        assert_eq!(ended.code, code, "{shown}: {ended:?}");
        assert!(began.elapsed() < LIMIT, "{shown}");
    }
}
