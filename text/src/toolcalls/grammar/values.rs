//! The values of arguments, in formats that do not write them as one JSON object.

use serde_json::{Map, Value};

use super::{
    Tool,
    writer::{Writer, literal, sequence},
};
use crate::toolcalls::{
    minimax_m3::{ITEM, MARK},
    notation::{GEMMA_QUOTE, quoted},
    reader::is_name,
    schema::{Schema, Types},
};

/// Keywords with which a schema is written out in a format's own notation; with any other, and in what is nested, as JSON.
const PLAIN: &[&str] =
    &["type", "properties", "required", "items", "title", "description", "default", "examples", "$comment"];

/// An argument of a tool.
pub(super) struct Parameter<'a> {
    pub key: &'a str,
    schema: Schema<'a>,
    value: &'a Value,
    root: &'a Value,
    is_required: bool,
}

/// The arguments of a tool, in their order.
///
/// Errors: what asks something of all of them together.
pub(super) fn parameters<'a>(tool: &'a Tool<'_>) -> Result<Vec<Parameter<'a>>, String> {
    let root = &tool.arguments;
    let schema = tool.schema();
    let parts = schema.parts();
    let mut parameters: Vec<Parameter<'a>> = Vec::new();
    for part in &parts {
        for keyword in ["anyOf", "oneOf", "patternProperties", "minProperties", "maxProperties"] {
            if part.get(keyword).is_some() {
                return Err(format!(
                    "the keyword {keyword:?} cannot be held for all arguments in this format"
                ));
            }
        }
        let is_required = |key: &str| {
            let mut names = parts.iter().filter_map(|part| part.get("required")?.as_array()).flatten();
            names.any(|name| name == key)
        };
        for (key, value) in part.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if key.is_empty() || !key.chars().all(is_name) {
                return Err(format!("the argument {key:?} has characters that this format cannot have"));
            }
            if parameters.iter().all(|known| known.key != key) {
                let schema = schema.property(key);
                parameters.push(Parameter { key, schema, value, root, is_required: is_required(key) });
            }
        }
        for name in part.get("required").and_then(Value::as_array).into_iter().flatten() {
            let is_known = |part: &&Value| {
                part.get("properties").is_some_and(|p| p.get(name.as_str().unwrap_or("")).is_some())
            };
            if !parts.iter().any(is_known) {
                return Err(format!("the argument {name} is required, and has no schema"));
            }
        }
    }
    Ok(parameters)
}

impl Parameter<'_> {
    /// The rule of an argument, or that it may be missing.
    pub fn once(&self, argument: &str) -> String {
        if self.is_required { argument.to_owned() } else { format!("{argument}?") }
    }

    /// Whether the value may be a text, which is read as such where it is no other value that its schema allows.
    pub fn is_text(&self) -> bool {
        is_text(self.schema)
    }

    /// The value without quotes, and the tag that closes it.
    ///
    /// Errors: a text of an enumeration would end the value.
    pub fn text(
        &self,
        writer: &mut Writer,
        tool: &Tool<'_>,
        before_close: &str,
        close: &str,
    ) -> Result<String, String> {
        let end = format!("{before_close}{close}");
        if let Some(choices) = choices(self.value) {
            let mut texts = Vec::new();
            for choice in choices {
                let text = choice.as_str().map_or_else(|| choice.to_string(), str::to_owned);
                if text.contains(close) {
                    return Err(format!(
                        "the argument {:?} has a value with {close:?}, which ends it",
                        self.key
                    ));
                }
                texts.push(literal(&format!("{text}{end}")));
            }
            return Ok(writer.rule(&texts.join(" | ")));
        }
        if self.is_text() {
            if !is_plain_text(self.schema) {
                writer.free.push(format!("{}.{}", tool.name, self.key));
            }
            return Ok(writer.text(close));
        }
        let value = writer.json(&self.schema_alone()?);
        Ok(sequence(&[&value, &literal(&end)]))
    }

    /// The schema, with the definitions that it refers to.
    ///
    /// Errors: it refers to something else.
    pub fn schema_alone(&self) -> Result<Value, String> {
        alone(self.value, self.root)
    }
}

fn is_text(schema: Schema<'_>) -> bool {
    let types = schema.types();
    types.string || types.are_unknown()
}

/// Whether any text is a value.
fn is_plain_text(schema: Schema<'_>) -> bool {
    let only_string = Types { string: true, ..Types::default() };
    let limits = ["pattern", "format", "minLength", "maxLength"];
    let has_limit = schema.parts().iter().any(|part| limits.iter().any(|limit| part.get(limit).is_some()));
    (schema.types() == only_string && !has_limit) || schema.types().are_unknown()
}

/// The values that a schema enumerates.
fn choices(schema: &Value) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum").and_then(Value::as_array)) {
        (Some(only), _) => Some(vec![only]),
        (None, Some(values)) if !values.is_empty() => Some(values.iter().collect()),
        _ => None,
    }
}

/// A part of a schema with the definitions of the whole.
///
/// Errors: it refers to something that is no definition.
fn alone(part: &Value, root: &Value) -> Result<Value, String> {
    let mut open = vec![part];
    let mut refers = false;
    while let Some(value) = open.pop() {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    refers = true;
                    if !reference.starts_with("#/$defs/") && !reference.starts_with("#/definitions/") {
                        return Err(format!("the reference {reference:?} is to no definition"));
                    }
                }
                open.extend(members.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    let Value::Object(members) = part else { return Ok(part.clone()) };
    let mut members = members.clone();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = root.get(key).filter(|_| refers) {
            members.insert(key.to_owned(), definitions.clone());
        }
    }
    Ok(Value::Object(members))
}

/// What a schema is, as far as a notation writes it out.
enum Shape<'a> {
    Object(&'a Map<String, Value>),
    Array(&'a Value),
    Text,
    Texts(Vec<&'a str>),
    Json,
}

fn shape(schema: &Value) -> Shape<'_> {
    let Some(members) = schema.as_object() else { return Shape::Json };
    let kind = members.get("type").and_then(Value::as_str);
    if kind == Some("string")
        && let Some(texts) = choices(schema).and_then(|all| all.into_iter().map(Value::as_str).collect())
    {
        return Shape::Texts(texts);
    }
    if !members.keys().all(|key| PLAIN.contains(&key.as_str())) {
        return Shape::Json;
    }
    match (kind, members.get("properties"), members.get("items")) {
        (Some("string"), ..) => Shape::Text,
        (Some("object"), Some(Value::Object(properties)), _)
            if !properties.is_empty() && properties.keys().all(|key| key.chars().all(is_name)) =>
        {
            Shape::Object(properties)
        }
        (Some("array"), _, Some(items)) if items.is_object() => Shape::Array(items),
        _ => Shape::Json,
    }
}

fn is_required(schema: &Value, key: &str) -> bool {
    schema.get("required").and_then(Value::as_array).is_some_and(|names| names.iter().any(|name| name == key))
}

/// Gemma's object of all arguments.
///
/// Errors: as for [`parameters`], and a reference.
pub(super) fn gemma(writer: &mut Writer, tool: &Tool<'_>) -> Result<String, String> {
    let mut members = Vec::new();
    for parameter in parameters(tool)? {
        let value = gemma_value(writer, parameter.value, parameter.root)?;
        let member = sequence(&[&literal(&format!("{}:", parameter.key)), &value]);
        members.push((writer.rule(&member), parameter.is_required));
    }
    let members = writer.list(&members, ",");
    Ok(sequence(&[&literal("{"), &members, &literal("}")]))
}

fn gemma_value(writer: &mut Writer, schema: &Value, root: &Value) -> Result<String, String> {
    match shape(schema) {
        Shape::Text => {
            let text = writer.text(GEMMA_QUOTE);
            Ok(sequence(&[&literal(GEMMA_QUOTE), &text]))
        }
        Shape::Texts(texts) if texts.iter().all(|text| !text.contains(GEMMA_QUOTE)) => {
            let text = |text: &&str| literal(&format!("{GEMMA_QUOTE}{text}{GEMMA_QUOTE}"));
            Ok(writer.rule(&texts.iter().map(text).collect::<Vec<_>>().join(" | ")))
        }
        Shape::Object(properties) => {
            let mut members = Vec::new();
            for (key, value) in properties {
                let value = gemma_value(writer, value, root)?;
                let member = sequence(&[&literal(&format!("{key}:")), &value]);
                members.push((writer.rule(&member), is_required(schema, key)));
            }
            let members = writer.list(&members, ",");
            Ok(sequence(&[&literal("{"), &members, &literal("}")]))
        }
        Shape::Array(items) => {
            let item = gemma_value(writer, items, root)?;
            let item = writer.rule(&item);
            Ok(sequence(&[&literal("["), &format!("({item} (\",\" {item})*)?"), &literal("]")]))
        }
        Shape::Texts(_) | Shape::Json => Ok(writer.json(&alone(schema, root)?)),
    }
}

/// LFM2's arguments by keyword.
///
/// Errors: as for [`parameters`], and a reference.
pub(super) fn keywords(writer: &mut Writer, tool: &Tool<'_>) -> Result<String, String> {
    let mut arguments = Vec::new();
    for parameter in parameters(tool)? {
        // In single quotes where nothing needs to be escaped.
        let is_bare = |text: &&str| !text.contains(['\'', '\\']) && !text.contains(char::is_control);
        let value = match shape(parameter.value) {
            Shape::Text => r"/'[^'\\\x00-\x1F\x7F]*'/".to_owned(),
            Shape::Texts(texts) => {
                let text =
                    |text: &&str| literal(&if is_bare(text) { format!("'{text}'") } else { quoted(text) });
                texts.iter().map(text).collect::<Vec<_>>().join(" | ")
            }
            _ if parameter.value.get("type").is_some_and(|kind| kind == "boolean")
                && choices(parameter.value).is_none() =>
            {
                "\"True\" | \"False\"".to_owned()
            }
            _ => writer.json(&parameter.schema_alone()?),
        };
        let value = writer.rule(&value);
        let argument = sequence(&[&literal(&format!("{}=", parameter.key)), &value]);
        arguments.push((writer.rule(&argument), parameter.is_required));
    }
    Ok(writer.list(&arguments, ", "))
}

/// MiniMax-M3's elements, one an argument.
///
/// Errors: as for [`parameters`], and a reference.
pub(super) fn elements(writer: &mut Writer, tool: &Tool<'_>) -> Result<String, String> {
    let mut arguments = Vec::new();
    for parameter in parameters(tool)? {
        let path = format!("{}.{}", tool.name, parameter.key);
        let value =
            element(writer, parameter.key, parameter.schema, (parameter.value, parameter.root), &path)?;
        arguments.push(parameter.once(&value));
    }
    Ok(arguments.join(" "))
}

fn element(
    writer: &mut Writer,
    key: &str,
    schema: Schema<'_>,
    (value, root): (&Value, &Value),
    path: &str,
) -> Result<String, String> {
    let close = format!("{MARK}</{key}>");
    let inner = match shape(value) {
        Shape::Texts(texts) if texts.iter().all(|text| !text.contains(MARK)) => {
            let text = |text: &&str| literal(&format!("{text}{close}"));
            let texts: Vec<String> = texts.iter().map(text).collect();
            writer.rule(&texts.join(" | "))
        }
        Shape::Object(properties) => {
            let mut members = Vec::new();
            for (name, member) in properties {
                let rule = element(writer, name, schema.property(name), (member, root), path)?;
                members.push(if is_required(value, name) { rule } else { format!("{rule}?") });
            }
            members.push(literal(&close));
            members.join(" ")
        }
        Shape::Array(items) => {
            let item = element(writer, ITEM, schema.items(), (items, root), path)?;
            sequence(&[&format!("{item}*"), &literal(&close)])
        }
        _ if is_text(schema) => {
            if !is_plain_text(schema) {
                writer.free.push(path.to_owned());
            }
            let text = writer.text(MARK);
            sequence(&[&text, &literal(&format!("</{key}>"))])
        }
        _ => sequence(&[&writer.json(&alone(value, root)?), &literal(&close)]),
    };
    let open = literal(&format!("{MARK}<{key}>"));
    Ok(writer.rule(&sequence(&[&open, &inner])))
}
