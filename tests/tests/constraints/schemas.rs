//! Random schemas, checked by another validator.

use moe_run_text::constraint::{Lead, Rule, Vocabulary};
use serde_json::{Map, Value, json};

use super::{Random, any_text, tokenizer, validate};

/// A schema of which every value is short, if `are_short`.
pub(super) fn schema(random: &mut Random, depth: usize, are_short: bool) -> Value {
    let scalars = if are_short { 10 } else { 13 };
    let composed = if depth == 0 { 0 } else { 6 };
    let chosen = random.below(scalars + composed);
    // What is composed comes behind all scalars.
    match if chosen < scalars { chosen } else { chosen - scalars + 13 } {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": "integer", "minimum": -3, "maximum": 250}),
        3 => json!({"enum": ["a", "Zürich \"x\"", 7, null, true, {"k": [1]}]}),
        4 => json!({"const": ["東京", -2.5]}),
        5 => json!({"type": "string", "minLength": 1, "maxLength": 6}),
        6 => json!({"type": "string", "pattern": "^[a-c]{1,4}-[0-9]$"}),
        7 => json!({"type": "string", "format": "date"}),
        8 => json!({"type": ["integer", "null"], "exclusiveMinimum": 0, "maximum": 99}),
        9 => json!({"type": "integer", "minimum": 0, "maximum": 60, "multipleOf": 5}),
        10 => json!({"type": "number", "minimum": 0.5, "exclusiveMaximum": 2}),
        11 => json!({"type": "string"}),
        12 => json!({"type": "string", "format": "uuid", "description": "An id"}),
        13 => object(random, depth, are_short),
        14 => {
            let items = schema(random, depth - 1, are_short);
            json!({"type": "array", "items": items, "minItems": random.below(2), "maxItems": 2})
        }
        15 => {
            let first = schema(random, depth - 1, are_short);
            let second = schema(random, depth - 1, are_short);
            json!({"type": "array", "prefixItems": [first, second], "items": false, "minItems": 2})
        }
        16 => {
            let options = [schema(random, depth - 1, are_short), schema(random, depth - 1, are_short)];
            json!({"anyOf": options})
        }
        17 => {
            json!({"allOf": [{"type": "integer", "minimum": 4}, {"maximum": 12, "type": ["integer", "string"]}]})
        }
        _ => json!({"$ref": "#/$defs/common", "title": "A reference"}),
    }
}

fn object(random: &mut Random, depth: usize, are_short: bool) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in ["a", "b b", "ü", "d\"q"].into_iter().take(random.below(5)) {
        properties.insert(key.to_owned(), schema(random, depth - 1, are_short));
        if random.below(2) == 0 {
            required.push(key);
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// A schema whose root has the definitions.
pub(super) fn root(random: &mut Random, are_short: bool) -> Value {
    let mut schema = object(random, 3, are_short);
    schema["$defs"] = json!({"common": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}});
    schema
}

#[test]
fn values_of_random_schemas_are_valid() {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let mut random = Random(0x5EED);
    let mut values = Vec::new();
    for _ in 0..200 {
        let schema = root(&mut random, false);
        let mut constraint = vocabulary
            .constrain(&Rule::JsonSchema(schema.clone()), &Lead::default())
            .unwrap_or_else(|e| panic!("{e}: {schema}"));
        let text = any_text(&mut constraint, &tokenizer, &mut random, &["\"", "}", "]"]);
        let text = text.unwrap_or_else(|| panic!("no end: {schema}"));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        values.push((schema, value));
    }
    validate(&values);
}
