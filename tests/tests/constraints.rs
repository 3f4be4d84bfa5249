//! Texts that are held to a schema, an expression or a grammar: what comes out fits, whatever is chosen among the allowed tokens;
//! rules that cannot be held, or are made to cost much, are refused.

use std::time::{Duration, Instant};

use moe_run_graph::gguf::GgufFile;
use moe_run_tests::{
    cli::{Finished, run_with_input},
    fixtures,
};
use moe_run_text::{
    constraint::{Constraint, ConstraintError, Rule, Vocabulary},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_metadata(GgufFile::open(&fixtures::tiny_q4_k_m()).unwrap().metadata()).unwrap()
}

/// Numbers from a seed: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A text from any of the allowed tokens; after a while from those that end something. `None` where it does not end.
fn any_text(mut constraint: Constraint, tokenizer: &Tokenizer, random: &mut Random) -> Option<String> {
    let mut bytes = Vec::new();
    for step in 0..400 {
        if constraint.is_complete() {
            return Some(String::from_utf8(bytes).unwrap());
        }
        let allowed = constraint.allowed().unwrap();
        let ids = (0..u32::try_from(tokenizer.vocab_size()).unwrap()).map(moe_run_graph::ids::TokenId);
        let ids: Vec<_> = ids.filter(|&id| allowed.contains(id)).collect();
        let ends = ids.iter().find(|&&id| tokenizer.is_end_of_generation(id));
        if let Some(&end) = ends.filter(|_| step > 20 || random.below(2) == 0) {
            constraint.accept(end).unwrap();
            return Some(String::from_utf8(bytes).unwrap());
        }
        let piece = |id| tokenizer.piece(id).unwrap_or_default();
        let closing: Vec<_> =
            ids.iter().copied().filter(|&id| matches!(piece(id).as_slice(), b"\"" | b"}" | b"]")).collect();
        let from = if step > 20 && !closing.is_empty() { &closing } else { &ids };
        let from: Vec<_> = from.iter().copied().filter(|&id| !tokenizer.is_end_of_generation(id)).collect();
        let id = from[random.below(from.len())];
        constraint.accept(id).unwrap();
        bytes.extend(piece(id));
    }
    None
}

#[test]
fn schemas_give_json_that_fits() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo", "München", "東京"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
            "note": {"type": ["string", "null"], "maxLength": 8},
        },
        "required": ["city", "days", "tags", "note"],
        "additionalProperties": false,
        "$defs": {"tag": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": false}},
    });
    let mut random = Random(0xA11);
    for _ in 0..40 {
        let constraint = vocabulary.constrain(&Rule::JsonSchema(schema.clone())).unwrap();
        let text = any_text(constraint, &tokenizer, &mut random).expect("every text of it is short");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        assert!(["Oslo", "München", "東京"].contains(&value["city"].as_str().unwrap()), "{text}");
        assert!((1..=14).contains(&value["days"].as_i64().unwrap()), "{text}");
        let tags = value["tags"].as_array().unwrap();
        assert!(tags.len() <= 3 && tags.iter().all(|tag| tag["on"].is_boolean()), "{text}");
        assert!(value["note"].is_null() || value["note"].as_str().unwrap().chars().count() <= 8, "{text}");
        assert_eq!(value.as_object().unwrap().len(), 4);
        assert!(!text.contains('\n') && !text.contains("  "), "blanks are the separators' only: {text:?}");
    }
}

#[test]
fn expressions_and_grammars_hold() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let mut random = Random(0xB22);
    for _ in 0..30 {
        let rule = Rule::Regex("(yes|no)-[0-9]{3}".to_owned());
        let text = any_text(vocabulary.constrain(&rule).unwrap(), &tokenizer, &mut random).unwrap();
        let (word, digits) = text.split_once('-').unwrap();
        assert!(["yes", "no"].contains(&word), "{text}");
        assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        let rule = Rule::Grammar("start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]{1,2}/".to_owned());
        if let Some(text) = any_text(vocabulary.constrain(&rule).unwrap(), &tokenizer, &mut random) {
            assert!(text.split('+').all(|n| (1..=2).contains(&n.len()) && n.parse::<u8>().is_ok()), "{text}");
        }
    }
}

#[test]
fn a_token_that_is_not_allowed_is_an_error() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let end = tokenizer.end_of_generation()[0];
    let mut constraint = vocabulary.constrain(&Rule::Regex("a".to_owned())).unwrap();
    assert!(!constraint.allowed().unwrap().contains(end));
    assert!(matches!(constraint.accept(end), Err(ConstraintError::Step { .. })));
    let b = tokenizer.encode("b", moe_run_text::tokenizer::ControlTokens::Parse).unwrap()[0];
    assert!(matches!(constraint.accept(b), Err(ConstraintError::Step { .. })));
    let a = tokenizer.encode("a", moe_run_text::tokenizer::ControlTokens::Parse).unwrap()[0];
    let mut constraint = vocabulary.constrain(&Rule::Regex("a".to_owned())).unwrap();
    constraint.accept(a).unwrap();
    assert!(constraint.is_complete());
    assert!(constraint.allowed().unwrap().contains(end));
    constraint.accept(end).unwrap();
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let vocabulary = Vocabulary::new(&tokenizer()).unwrap();
    for (rule, name) in [
        (Rule::JsonSchema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (Rule::JsonSchema(json!({"not": {"type": "string"}})), "not"),
        (Rule::JsonSchema(json!({"type": "object", "x-guidance": {"lenient": true}})), "x-guidance"),
        (Rule::JsonSchema(json!({"type": "sting"})), "sting"),
        (Rule::JsonSchema(json!({"$ref": "#/$defs/none"})), "none"),
        (Rule::Regex("(a".to_owned()), "regular expression"),
        (Rule::Grammar("begin: \"a\"".to_owned()), "start"),
        (Rule::Grammar("start: other".to_owned()), "other"),
    ] {
        let error = vocabulary.constrain(&rule).expect_err(name).to_string();
        assert!(error.contains(name), "{rule:?}: {error}");
        assert!(error.len() < 600, "{error}");
    }
}

/// Rules made to cost much: refused, or held, in little time.
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
        let done = vocabulary.constrain(&rule).map(|mut constraint| {
            // Some steps of what was accepted.
            for _ in 0..8 {
                let Ok(allowed) = constraint.allowed() else { break };
                let next = (0..5000).map(moe_run_graph::ids::TokenId).find(|&id| allowed.contains(id));
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

fn run(args: &[&str]) -> Finished {
    run_with_input(PROGRAM, args.iter().copied(), b"")
}

#[test]
fn the_commands_hold_the_model_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = path(
        "schema.json",
        r##"{"type": "object", "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["answer"], "additionalProperties": false}"##,
    );
    let ask = |more: &[&str]| {
        let args = ["run", "-p", "What is 2+2?", "--json"];
        run(&args.iter().chain(more).copied().collect::<Vec<_>>())
    };
    for temperature in ["0", "1.5"] {
        let report =
            ask(&["--temp", temperature, "--seed", "7", "--json-schema", &schema]).succeeded().json();
        let value: Value = serde_json::from_str(report["text"].as_str().unwrap()).unwrap();
        assert!((0..=99).contains(&value["answer"].as_i64().unwrap()), "{report}");
        assert!(["constraint_complete", "end_token"].contains(&report["stop_reason"].as_str().unwrap()));
    }
    let report = ask(&["--temp", "0", "--regex", "[0-9]"]).succeeded().json();
    assert!(report["text"].as_str().unwrap().parse::<u8>().is_ok(), "{report}");
    let grammar = path("g.lark", "start: \"yes\" | \"no\"");
    let report = ask(&["--temp", "0", "--grammar", &grammar]).succeeded().json();
    assert!(["yes", "no"].contains(&report["text"].as_str().unwrap()), "{report}");
    for (args, said) in [
        (&["--regex", "(a"][..], "regular expression"),
        (&["--json-schema", &path("u.json", r#"{"uniqueItems": true}"#)], "uniqueItems"),
        (&["--json-schema", &path("n.json", "{")], "not valid JSON"),
        (&["--regex", "a", "--grammar", &grammar], "cannot be used with"),
    ] {
        let refused = ask(args);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    let args = ["chat", "--temp", "0", "--regex", "(yes|no)"];
    let chat = run_with_input(PROGRAM, args, b"Is it?\nAnd now?\n").succeeded();
    assert!(chat.stdout.lines().filter(|line| ["yes", "no"].contains(line)).count() == 2, "{chat:?}");
}
