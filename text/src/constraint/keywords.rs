//! The keywords of a JSON schema: which are held, which only describe, and that any other is refused by name.

use serde_json::{Map, Value};

/// What schemas stand under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    /// Something that is no schema.
    Nothing,
    /// A schema, or for `items` in older drafts a list of them.
    Schemas,
    /// Schemas by names.
    Named,
}

/// The keywords that the engine holds.
const HELD: &[(&str, Holds)] = &[
    ("$ref", Holds::Nothing),
    ("additionalItems", Holds::Schemas),
    ("additionalProperties", Holds::Schemas),
    ("allOf", Holds::Schemas),
    ("anyOf", Holds::Schemas),
    ("const", Holds::Nothing),
    ("enum", Holds::Nothing),
    ("exclusiveMaximum", Holds::Nothing),
    ("exclusiveMinimum", Holds::Nothing),
    ("format", Holds::Nothing),
    ("items", Holds::Schemas),
    ("maxItems", Holds::Nothing),
    ("maxLength", Holds::Nothing),
    ("maxProperties", Holds::Nothing),
    ("maximum", Holds::Nothing),
    ("minItems", Holds::Nothing),
    ("minLength", Holds::Nothing),
    ("minProperties", Holds::Nothing),
    ("minimum", Holds::Nothing),
    ("multipleOf", Holds::Nothing),
    ("oneOf", Holds::Schemas),
    ("pattern", Holds::Nothing),
    ("patternProperties", Holds::Named),
    ("prefixItems", Holds::Schemas),
    ("properties", Holds::Named),
    ("required", Holds::Nothing),
    ("type", Holds::Nothing),
];

/// Keywords that ask nothing of a value. Names that begin with `x-` are such, too.
const DESCRIBING: &[(&str, Holds)] = &[
    ("$anchor", Holds::Nothing),
    ("$comment", Holds::Nothing),
    ("$defs", Holds::Named),
    ("$id", Holds::Nothing),
    ("$schema", Holds::Nothing),
    ("contentEncoding", Holds::Nothing),
    ("contentMediaType", Holds::Nothing),
    ("default", Holds::Nothing),
    ("definitions", Holds::Named),
    ("deprecated", Holds::Nothing),
    ("description", Holds::Nothing),
    ("discriminator", Holds::Nothing),
    ("examples", Holds::Nothing),
    ("id", Holds::Nothing),
    ("readOnly", Holds::Nothing),
    ("title", Holds::Nothing),
    ("writeOnly", Holds::Nothing),
];

/// The engine's own options, which are no schema's.
pub(super) const OPTIONS: &str = "x-guidance";

/// Properties of one object that may be missing: the engine follows each of them at once.
const MAX_OPTIONAL: usize = 480;
/// Alternatives beside each other, which it follows likewise.
const MAX_ALTERNATIVES: usize = 1500;
/// Pairs of patterns of properties, in all objects together: it compares each with each.
const MAX_PATTERN_PAIRS: usize = 2500;

/// Errors: the name of a keyword that is not held, and where it stands; or what there is too much of.
pub(super) fn check(schema: &Value) -> Result<(), String> {
    let mut pattern_pairs = 0;
    let mut open: Vec<(String, &Value)> = vec![(String::new(), schema)];
    while let Some((at, schema)) = open.pop() {
        match schema {
            Value::Object(keywords) => {
                check_keywords(&at, keywords, &mut open)?;
                pattern_pairs += check_counts(&at, keywords)?;
            }
            Value::Array(schemas) => {
                open.extend(schemas.iter().enumerate().map(|(n, schema)| (format!("{at}/{n}"), schema)));
            }
            // What is no schema is refused by the engine, where it stands for one.
            _ => {}
        }
        if pattern_pairs > MAX_PATTERN_PAIRS {
            return Err(format!(
                "{pattern_pairs} pairs of \"patternProperties\", wanted at most {MAX_PATTERN_PAIRS}"
            ));
        }
    }
    Ok(())
}

/// Errors: more than what is taken. Gives the pairs of patterns.
fn check_counts(at: &str, keywords: &Map<String, Value>) -> Result<usize, String> {
    let members = |name: &str| keywords.get(name).and_then(Value::as_object).map_or(0, Map::len);
    let items = |name: &str| keywords.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    let limit = |found: usize, what: &str, most: usize| match found > most {
        true => Err(format!("{found} {what} at #{at}, wanted at most {most}")),
        false => Ok(()),
    };
    limit(members("properties").saturating_sub(items("required")), "optional properties", MAX_OPTIONAL)?;
    limit(items("anyOf").max(items("oneOf")), "alternatives", MAX_ALTERNATIVES)?;
    Ok(members("patternProperties").pow(2))
}

fn check_keywords<'a>(
    at: &str,
    keywords: &'a Map<String, Value>,
    open: &mut Vec<(String, &'a Value)>,
) -> Result<(), String> {
    for (name, value) in keywords {
        let known = HELD.iter().chain(DESCRIBING).find(|(known, _)| known == name);
        let at = format!("{at}/{name}");
        match known {
            Some((_, Holds::Nothing)) => {}
            Some((_, Holds::Schemas)) => open.push((at, value)),
            Some((_, Holds::Named)) => {
                let named = value.as_object().into_iter().flatten();
                open.extend(named.map(|(name, schema)| (format!("{at}/{name}"), schema)));
            }
            None if name.starts_with("x-") && name != OPTIONS => {}
            None => return Err(format!("the keyword {name:?} cannot be held (found at #{at})")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keywords_are_refused_by_name_wherever_they_stand() {
        let refused = |schema: Value| check(&schema).expect_err("it is refused");
        assert!(refused(json!({"not": {}})).contains("\"not\" cannot be held (found at #/not)"));
        let nested = json!({"properties": {"a": {"items": [{"anyOf": [{"uniqueItems": true}]}]}}});
        assert!(refused(nested).contains("#/properties/a/items/0/anyOf/0/uniqueItems"));
        assert!(refused(json!({"$defs": {"a": {"nullable": true}}})).contains("nullable"));
        assert!(refused(json!({OPTIONS: {}})).contains(OPTIONS));
        let many = |count: usize| (0..count).map(|n| (n.to_string(), json!({}))).collect::<Map<_, _>>();
        assert!(
            refused(json!({"properties": many(481)}))
                .contains("481 optional properties at #, wanted at most 480")
        );
        assert!(
            refused(json!({"items": {"anyOf": vec![json!({}); 1501]}}))
                .contains("1501 alternatives at #/items")
        );
        assert!(refused(json!({"patternProperties": many(51)})).contains("2601 pairs"));
        let required: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
        assert_eq!(check(&json!({"properties": many(5000), "required": required})), Ok(()));
        // Names of properties and values are no keywords.
        let plain =
            json!({"x-order": 1, "properties": {"not": {"enum": [{"if": 1}], "default": {"then": 1}}}});
        assert_eq!(check(&plain), Ok(()));
        assert_eq!(check(&json!(true)), Ok(()));
    }
}
