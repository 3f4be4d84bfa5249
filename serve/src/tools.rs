//! The tools of a request, in the form of OpenAI's chats, which templates read; and which of them may or must be called.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_type};

/// Which calls an answer has.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// The model decides.
    #[default]
    Auto,
    /// None: the model does not hear of the tools.
    None,
    /// One at least.
    Required,
    /// One of this tool.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// As OpenAI's chats have them, each with a name that is no other's.
    pub list: Vec<Value>,
    /// Which are called.
    pub choice: Choice,
    /// One call at most.
    pub one_call: bool,
}

/// The name of a tool.
pub fn name_of(tool: &Value) -> &str {
    tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default()
}

impl Tools {
    /// What a template reads: nothing where there are none, or none may be called.
    pub fn for_template(&self) -> Option<Value> {
        let are_wanted = self.choice != Choice::None && !self.list.is_empty();
        are_wanted.then(|| Value::Array(self.list.clone()))
    }

    /// Those of OpenAI's chats.
    ///
    /// Errors: what is no tool, or no choice.
    pub fn of_chat(fields: &mut Fields) -> Result<Tools, ApiError> {
        let list = fields.array("tools")?.unwrap_or_default();
        for (at, tool) in list.iter().enumerate() {
            let name = format!("tools[{at}]");
            check_type(tool, &name)?;
            let function = tool.get("function").filter(|function| function.is_object());
            let Some(Value::Object(function)) = function else {
                return Err(missing(&format!("{name}.function")));
            };
            check_function(function, &format!("{name}.function"))?;
        }
        Tools::of_openai(fields, list)
    }

    /// Those of OpenAI's responses: name and parameters stand in the tool itself.
    ///
    /// Errors: as above.
    pub fn of_responses(fields: &mut Fields) -> Result<Tools, ApiError> {
        let mut list = fields.array("tools")?.unwrap_or_default();
        for (at, tool) in list.iter_mut().enumerate() {
            let name = format!("tools[{at}]");
            check_type(tool, &name)?;
            let Value::Object(found) = tool else { return Err(wrong_type(name, tool, "an object")) };
            check_function(found, &name)?;
            let mut function = std::mem::take(found);
            function.remove("type");
            function.retain(|_, value| !value.is_null());
            *tool = json!({"type": "function", "function": function});
        }
        Tools::of_openai(fields, list)
    }

    fn of_openai(fields: &mut Fields, list: Vec<Value>) -> Result<Tools, ApiError> {
        const NAME: &str = "tool_choice";
        let one_call = !fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let choice = match fields.take(NAME) {
            None => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "auto" => Choice::Auto,
                "none" => Choice::None,
                "required" => Choice::Required,
                _ => {
                    let wanted =
                        "wanted \"auto\", \"none\", \"required\", or an object that names a function";
                    return Err(ApiError::field(NAME, "invalid_value", wanted));
                }
            },
            Some(Value::Object(object)) => {
                if object.get("type").is_some_and(|kind| kind != "function") {
                    return Err(ApiError::unsupported(NAME, "only one function is named"));
                }
                let named = object.get("function").and_then(|f| f.get("name")).or(object.get("name"));
                match named {
                    Some(Value::String(name)) => Choice::Named(name.clone()),
                    _ => return Err(missing("tool_choice.function.name")),
                }
            }
            Some(other) => return Err(wrong_type(NAME, &other, "a string or an object")),
        };
        Tools { list, choice, one_call }.checked()
    }

    /// Those of Anthropic's messages.
    ///
    /// Errors: as above.
    pub fn of_anthropic(fields: &mut Fields) -> Result<Tools, ApiError> {
        const NAME: &str = "tool_choice";
        let tools = fields.array("tools")?.unwrap_or_default();
        let list = tools.iter().enumerate().map(of_anthropic).collect::<Result<_, _>>()?;
        let Some(choice) = fields.object(NAME)? else {
            return Tools { list, ..Tools::default() }.checked();
        };
        let one_call = match choice.get("disable_parallel_tool_use") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(is_set)) => *is_set,
            Some(other) => {
                let name = "tool_choice.disable_parallel_tool_use";
                return Err(wrong_type(name, other, "true or false"));
            }
        };
        let choice = match choice.get("type").and_then(Value::as_str) {
            Some("auto") => Choice::Auto,
            Some("none") => Choice::None,
            Some("any") => Choice::Required,
            Some("tool") => match choice.get("name") {
                Some(Value::String(name)) => Choice::Named(name.clone()),
                _ => return Err(missing("tool_choice.name")),
            },
            _ => {
                let wanted = "wanted the type \"auto\", \"any\", \"tool\" or \"none\"";
                return Err(ApiError::field(NAME, "invalid_value", wanted));
            }
        };
        Tools { list, choice, one_call }.checked()
    }

    /// Errors: two tools of one name; a choice that no tool is.
    fn checked(self) -> Result<Tools, ApiError> {
        let mut names: Vec<&str> = self.list.iter().map(name_of).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("found two tools of the name {:?}", brief(pair[0]));
            return Err(ApiError::field("tools", "invalid_value", message));
        }
        let wrong = |message: String| Err(ApiError::field("tool_choice", "invalid_value", message));
        match &self.choice {
            Choice::Required if names.is_empty() => wrong("wanted tools beside it".to_owned()),
            Choice::Named(name) if names.binary_search(&name.as_str()).is_err() => {
                wrong(format!("no tool has the name {:?}", brief(name)))
            }
            _ => Ok(self),
        }
    }
}

fn brief(name: &str) -> String {
    name.chars().take(60).collect()
}

/// Errors: a tool of another kind than a function.
fn check_type(tool: &Value, name: &str) -> Result<(), ApiError> {
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => Ok(()),
        Some(_) => Err(ApiError::unsupported(format!("{name}.type"), "only functions are called")),
        None => Err(wrong_type(name, tool, "an object with \"type\": \"function\"")),
    }
}

/// Errors: a function without a name, or whose parameters are no schema.
fn check_function(function: &Map<String, Value>, name: &str) -> Result<(), ApiError> {
    match function.get("name") {
        Some(Value::String(text)) if !text.is_empty() => {}
        _ => return Err(missing(&format!("{name}.name"))),
    }
    match function.get("description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(other) => return Err(wrong_type(format!("{name}.description"), other, "a string")),
    }
    match function.get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(other) => Err(wrong_type(format!("{name}.parameters"), other, "an object")),
    }
}

/// A tool of Anthropic's API.
fn of_anthropic((at, tool): (usize, &Value)) -> Result<Value, ApiError> {
    let name = format!("tools[{at}]");
    match tool.get("type") {
        None | Some(Value::Null) => {}
        Some(kind) if kind == "custom" => {}
        Some(_) => {
            let why = "only the client's own tools are called";
            return Err(ApiError::unsupported(format!("{name}.type"), why));
        }
    }
    let Value::Object(tool) = tool else { return Err(wrong_type(name, tool, "an object with \"name\"")) };
    let mut function = Map::new();
    for (field, as_field) in
        [("name", "name"), ("description", "description"), ("input_schema", "parameters")]
    {
        if let Some(value) = tool.get(field).filter(|value| !value.is_null()) {
            function.insert(as_field.to_owned(), value.clone());
        }
    }
    if let Some(other) = function.get("parameters").filter(|schema| !schema.is_object()) {
        return Err(wrong_type(format!("{name}.input_schema"), other, "an object"));
    }
    check_function(&function, &name)?;
    Ok(json!({"type": "function", "function": function}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &Value) -> Fields {
        Fields::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_three_forms_of_a_tool_are_one() {
        let schema = json!({"type": "object"});
        let wanted = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}]);
        let chat = Tools::of_chat(&mut fields(&json!({
            "tools": wanted, "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false,
        })));
        let responses = Tools::of_responses(&mut fields(&json!({
            "tools": [{"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": null}],
            "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
        })));
        let anthropic = Tools::of_anthropic(&mut fields(&json!({
            "tools": [{"name": "f", "description": "d", "input_schema": schema}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
        })));
        for tools in [chat, responses, anthropic] {
            let tools = tools.unwrap();
            assert_eq!(tools.for_template(), Some(wanted.clone()));
            assert_eq!((tools.choice, tools.one_call), (Choice::Named("f".into()), true));
        }
    }

    #[test]
    fn choices_are_checked() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        for (choice, wanted) in [
            (json!("auto"), Some(Choice::Auto)),
            (json!("none"), Some(Choice::None)),
            (json!("required"), Some(Choice::Required)),
            (json!("some"), None),
            (json!(3), None),
            (json!({"type": "function"}), None),
            (json!({"type": "custom", "name": "f"}), None),
            (json!({"type": "function", "function": {"name": "g"}}), None),
        ] {
            let read = Tools::of_chat(&mut fields(&json!({"tools": [tool], "tool_choice": choice})));
            match (read, wanted) {
                (Ok(tools), Some(wanted)) => assert_eq!(tools.choice, wanted),
                (Err(error), None) => {
                    assert!(error.param.unwrap().starts_with("tool_choice"), "{choice}");
                }
                (read, wanted) => panic!("{choice}: {read:?}, wanted {wanted:?}"),
            }
        }
        for body in [json!({"tool_choice": "required"}), json!({"tools": [tool, tool]})] {
            assert!(Tools::of_chat(&mut fields(&body)).is_err());
        }
        let none = Tools::of_chat(&mut fields(&json!({"tools": [tool], "tool_choice": "none"}))).unwrap();
        assert_eq!(none.for_template(), None);
    }
}
