//! Rules of each kind.

use moe_run_text::{
    constraint::{ConstraintError, Lead, Rule, Vocabulary},
    tokenizer::ControlTokens,
};
use serde_json::{Value, json};

use super::{Random, any_text, tokenizer};

const JSON: &[&str] = &["\"", "}", "]"];

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
        let mut constraint =
            vocabulary.constrain(&Rule::JsonSchema(schema.clone()), &Lead::default()).unwrap();
        let text =
            any_text(&mut constraint, &tokenizer, &mut random, JSON).expect("every text of it is short");
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
        let text = any_text(
            &mut vocabulary.constrain(&rule, &Lead::default()).unwrap(),
            &tokenizer,
            &mut random,
            JSON,
        )
        .unwrap();
        let (word, digits) = text.split_once('-').unwrap();
        assert!(["yes", "no"].contains(&word), "{text}");
        assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        let rule = Rule::Grammar("start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]{1,2}/".to_owned());
        if let Some(text) = any_text(
            &mut vocabulary.constrain(&rule, &Lead::default()).unwrap(),
            &tokenizer,
            &mut random,
            JSON,
        ) {
            assert!(text.split('+').all(|n| (1..=2).contains(&n.len()) && n.parse::<u8>().is_ok()), "{text}");
        }
    }
}

#[test]
fn a_token_that_is_not_allowed_is_an_error() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let end = tokenizer.end_of_generation()[0];
    let mut constraint = vocabulary.constrain(&Rule::Regex("a".to_owned()), &Lead::default()).unwrap();
    assert!(!constraint.allowed().unwrap().contains(end));
    assert!(matches!(constraint.accept(end), Err(ConstraintError::Step { .. })));
    let b = tokenizer.encode("b", ControlTokens::Parse).unwrap()[0];
    assert!(matches!(constraint.accept(b), Err(ConstraintError::Step { .. })));
    let a = tokenizer.encode("a", ControlTokens::Parse).unwrap()[0];
    let mut constraint = vocabulary.constrain(&Rule::Regex("a".to_owned()), &Lead::default()).unwrap();
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
        let error = vocabulary.constrain(&rule, &Lead::default()).expect_err(name).to_string();
        assert!(error.contains(name), "{rule:?}: {error}");
        assert!(error.len() < 600, "{error}");
    }
}
