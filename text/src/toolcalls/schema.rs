//! The tools' schemas: which type an argument has that is written without quotes.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    notation::{self, MAX_DEPTH, Notation, Sink},
    reader::Reader,
};

/// How far references and combinations of schemas are followed.
const MAX_STEPS: usize = 64;

/// The parameters of the tools of a request, by the tools' names.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools(HashMap<String, Value>);

impl Tools {
    /// From an array of tools, each `{"type": "function", "function": {"name", "parameters"}}` or its inner part. What is
    /// neither is passed over: the template is the one to refuse it.
    pub fn new(tools: Option<&Value>) -> Tools {
        let mut parameters = HashMap::new();
        for (name, schema) in functions(tools) {
            if let Some(schema) = schema {
                parameters.insert(name.to_owned(), schema.clone());
            }
        }
        Tools(parameters)
    }

    /// The schema of a tool's arguments.
    pub fn arguments(&self, tool: &str) -> Schema<'_> {
        let root = self.0.get(tool);
        Schema { root, at: root }
    }
}

/// The names and parameters of an array of tools, as [`Tools::new`] takes them.
pub(super) fn functions(tools: Option<&Value>) -> impl Iterator<Item = (&str, Option<&Value>)> {
    tools.and_then(Value::as_array).into_iter().flatten().filter_map(|tool| {
        let function = tool.get("function").unwrap_or(tool);
        let schema = ["parameters", "input_schema", "inputSchema"].iter().find_map(|key| function.get(*key));
        Some((function.get("name")?.as_str()?, schema))
    })
}

/// A schema, or that there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schema<'a> {
    /// What references lead from.
    root: Option<&'a Value>,
    at: Option<&'a Value>,
}

/// The types that a value may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Types {
    pub string: bool,
    pub number: bool,
    pub boolean: bool,
    pub null: bool,
    pub array: bool,
    pub object: bool,
}

impl Types {
    /// Nothing is said.
    pub fn are_unknown(self) -> bool {
        self == Types::default()
    }

    fn add(&mut self, name: &str) {
        match name {
            "string" => self.string = true,
            "integer" | "number" => self.number = true,
            "boolean" => self.boolean = true,
            "null" => self.null = true,
            "array" => self.array = true,
            "object" => self.object = true,
            _ => {}
        }
    }

    fn add_of(&mut self, value: &Value) {
        match value {
            Value::String(_) => self.string = true,
            Value::Number(_) => self.number = true,
            Value::Bool(_) => self.boolean = true,
            Value::Null => self.null = true,
            Value::Array(_) => self.array = true,
            Value::Object(_) => self.object = true,
        }
    }

    /// Whether a JSON text, known to be valid, is of one of the types.
    fn allow(self, json: &str) -> bool {
        match json.bytes().next() {
            Some(b'"') => self.string,
            Some(b'{') => self.object,
            Some(b'[') => self.array,
            Some(b't' | b'f') => self.boolean,
            Some(b'n') => self.null,
            _ => self.number,
        }
    }
}

impl<'a> Schema<'a> {
    /// A whole schema.
    pub fn root(schema: &'a Value) -> Schema<'a> {
        Schema { root: Some(schema), at: Some(schema) }
    }

    /// The schemas that together say what this one does: itself, what it refers to, what it is combined of.
    pub fn parts(self) -> Vec<&'a Value> {
        let mut parts: Vec<&Value> = self.at.into_iter().collect();
        let mut next = 0;
        while let Some(part) = parts.get(next).copied() {
            next += 1;
            if let Some(reference) = part.get("$ref").and_then(Value::as_str) {
                let pointed = reference.strip_prefix('#').and_then(|path| self.root?.pointer(path));
                parts.extend(pointed);
            }
            for key in ["anyOf", "oneOf", "allOf"] {
                parts.extend(part.get(key).and_then(Value::as_array).into_iter().flatten());
            }
            parts.truncate(MAX_STEPS);
        }
        parts
    }

    /// The types that it allows.
    pub fn types(self) -> Types {
        let mut types = Types::default();
        for part in self.parts() {
            match part.get("type") {
                Some(Value::String(name)) => types.add(name),
                Some(Value::Array(names)) => {
                    names.iter().filter_map(Value::as_str).for_each(|name| types.add(name));
                }
                _ => {
                    // What has no type may show it.
                    part.get("enum")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                        .for_each(|v| types.add_of(v));
                    part.get("const").into_iter().for_each(|v| types.add_of(v));
                    types.object |= part.get("properties").is_some();
                    types.array |= part.get("items").is_some();
                }
            }
            types.null |= part.get("nullable") == Some(&Value::Bool(true));
        }
        types
    }

    /// The schema of an object's member.
    pub fn property(self, name: &str) -> Schema<'a> {
        let parts = self.parts();
        let found = parts.iter().find_map(|part| part.get("properties")?.get(name));
        let other =
            || parts.iter().find_map(|part| part.get("additionalProperties").filter(|v| v.is_object()));
        Schema { root: self.root, at: found.or_else(other) }
    }

    /// The schema of an array's elements.
    pub fn items(self) -> Schema<'a> {
        Schema { root: self.root, at: self.parts().iter().find_map(|part| part.get("items")) }
    }

    /// A value without quotes as JSON text: what the schema says that it is, and where the schema says nothing, JSON that it
    /// looks like, else a string. `are_python`: the format writes truth values and null as Python does.
    pub fn value(self, text: &str, are_python: bool) -> String {
        let types = self.types();
        let string = || notation::quoted(text);
        let only_string = Types { string: true, ..Types::default() };
        if types == only_string {
            return string();
        }
        let trimmed = text.trim();
        let json = whole(trimmed, Notation::Json);
        let python = || whole(trimmed, Notation::Python).filter(|_| !trimmed.starts_with(['"', '\'']));
        match json {
            // Nothing is known: what has quotes may be a string with quotes.
            Some(json) if types.are_unknown() && !json.starts_with('"') => json,
            None if types.are_unknown() && are_python => python().unwrap_or_else(string),
            _ if types.are_unknown() => string(),
            Some(json) if types.allow(&json) && !json.starts_with('"') => json,
            // A type that the schema does not allow; a text would be allowed.
            _ if types.string => python().filter(|json| types.allow(json)).unwrap_or_else(string),
            Some(json) => json,
            None => python().unwrap_or_else(string),
        }
    }
}

/// What is said to be no text as JSON text, where it is such, or a value of Python; else a string.
pub(super) fn json_of(text: &str) -> String {
    let text = text.trim();
    whole(text, Notation::Json)
        .or_else(|| whole(text, Notation::Python))
        .unwrap_or_else(|| notation::quoted(text))
}

/// A text as JSON, where it is one value.
fn whole(text: &str, notation: Notation) -> Option<String> {
    let reader = Reader::of(text);
    let mut json = String::new();
    super::at_once(async {
        notation::value(&reader, notation, &mut Sink::Text(&mut json)).await.ok()?;
        reader.blanks().await;
        reader.peek().await.is_none().then_some(())
    })
    .flatten()?;
    Some(json)
}

/// Whether a JSON text is an object that any reader of JSON takes.
pub(super) fn is_object(json: &str) -> bool {
    const _: () = assert!(MAX_DEPTH < 128);
    json.starts_with('{') && whole(json, Notation::Json).is_some()
}
