//! What a request wants its answer held to: a form that a field describes, calls that must come, or either where calls may come.

use moe_run_graph::ids::TokenId;
use moe_run_runtime::generate::{Constraint, ConstraintFailure};
use moe_run_text::constraint::{self, ConstraintError, Lead, Rule};
use moe_run_text::toolcalls::{Ahead, CallsError, Format, ToolChoice};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_type};
use crate::messages::Conversation;
use crate::model::{Model, Prompt};
use crate::tools::Choice;

/// The field that names the tools that must be called.
const TOOL_CHOICE: &str = "tool_choice";

/// A form, and the field that describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    field: String,
    rule: Rule,
}

impl Form {
    fn new(field: impl Into<String>, rule: Rule) -> Form {
        Form { field: field.into(), rule }
    }

    /// What OpenAI's chats and completions say: `response_format`, and the fields of other servers.
    ///
    /// Errors: what is no form; more than one of them.
    pub fn read(fields: &mut Fields) -> Result<Option<Form>, ApiError> {
        let mut forms = Vec::new();
        if let Some(format) = fields.object("response_format")? {
            forms.extend(of_format(&format, "response_format", format.get("json_schema"))?);
        }
        for name in ["json_schema", "guided_json"] {
            // Some clients send the schema as a text.
            let schema = match fields.take(name) {
                Some(Value::String(text)) => serde_json::from_str(&text).map_err(|error| {
                    ApiError::field(name, "invalid_value", format!("it is not valid JSON: {error}"))
                })?,
                Some(other) => other,
                None => continue,
            };
            if schema.as_object().is_none_or(|schema| !schema.is_empty()) {
                forms.push(Form::new(name, Rule::JsonSchema(schema)));
            }
        }
        for name in ["grammar", "guided_grammar"] {
            let grammar = fields.string(name)?.filter(|grammar| !grammar.is_empty());
            forms.extend(grammar.map(|grammar| Form::new(name, Rule::Grammar(grammar))));
        }
        let regex = fields.string("guided_regex")?.filter(|regex| !regex.is_empty());
        forms.extend(regex.map(|regex| Form::new("guided_regex", Rule::Regex(regex))));
        if let Some(texts) = fields.take("guided_choice") {
            forms.extend(of_choice(&texts, "guided_choice")?);
        }
        if let Some(outputs) = fields.object("structured_outputs")? {
            for (name, value) in outputs.iter().filter(|(_, value)| !value.is_null()) {
                let field = format!("structured_outputs.{name}");
                let text = || value.as_str().map(str::to_owned);
                let wanted = |wanted| wrong_type(&field, value, wanted);
                match name.as_str() {
                    "json" => forms.push(Form::new(&field, Rule::JsonSchema(value.clone()))),
                    "regex" => {
                        let regex = text().ok_or_else(|| wanted("a string"))?;
                        forms.push(Form::new(&field, Rule::Regex(regex)));
                    }
                    "grammar" => {
                        let grammar = text().ok_or_else(|| wanted("a string"))?;
                        forms.push(Form::new(&field, Rule::Grammar(grammar)));
                    }
                    "choice" => forms.extend(of_choice(value, &field)?),
                    "json_object" if value == &json!(true) => forms.push(any_object(&field)),
                    "json_object" if value == &json!(false) => {}
                    _ => {
                        return Err(ApiError::unsupported(
                            field,
                            "json, regex, choice, grammar and json_object are",
                        ));
                    }
                }
            }
        }
        if let [_, second, ..] = forms.as_slice() {
            return Err(ApiError::field(
                &second.field,
                "invalid_value",
                "an answer is held to one form at a time",
            ));
        }
        Ok(forms.pop())
    }

    /// The form of an object with a `type`, which a field of OpenAI's responses or of Anthropic's messages is.
    ///
    /// Errors: what is no form.
    pub fn of_text(format: &Value, field: &str) -> Result<Option<Form>, ApiError> {
        match format {
            Value::Null => Ok(None),
            Value::Object(object) => of_format(object, field, Some(format)),
            other => Err(wrong_type(field, other, "an object")),
        }
    }
}

fn any_object(field: &str) -> Form {
    Form::new(field, Rule::JsonSchema(json!({"type": "object"})))
}

/// `named` has the schema.
fn of_format(
    format: &Map<String, Value>,
    field: &str,
    named: Option<&Value>,
) -> Result<Option<Form>, ApiError> {
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => match format.get("schema").filter(|schema| !schema.is_null()) {
            Some(schema) => Ok(Some(Form::new(field, Rule::JsonSchema(schema.clone())))),
            None => Ok(Some(any_object(field))),
        },
        Some("json_schema") => match named.and_then(|named| named.get("schema")) {
            Some(schema) => Ok(Some(Form::new(field, Rule::JsonSchema(schema.clone())))),
            None => {
                let place = if field == "response_format" { ".json_schema.schema" } else { ".schema" };
                Err(missing(&format!("{field}{place}")))
            }
        },
        _ => {
            let wanted = "wanted the type \"text\", \"json_object\" or \"json_schema\"";
            Err(ApiError::field(format!("{field}.type"), "invalid_value", wanted))
        }
    }
}

/// One of some texts.
fn of_choice(texts: &Value, field: &str) -> Result<Option<Form>, ApiError> {
    let Value::Array(texts) = texts else { return Err(wrong_type(field, texts, "an array of strings")) };
    if let Some(other) = texts.iter().find(|text| !text.is_string()) {
        return Err(wrong_type(field, other, "strings"));
    }
    // A string of JSON is one of Lark.
    let texts: Vec<String> = texts.iter().map(Value::to_string).collect();
    let rule = || Rule::Grammar(format!("start: {}\n", texts.join(" | ")));
    Ok((!texts.is_empty()).then(|| Form::new(field, rule())))
}

/// What an answer is held to, and what stands in front of that.
#[derive(Clone, Debug)]
pub struct Held {
    form: Form,
    lead: Lead,
    /// The format's tags that are text in the rule.
    marks: Option<Vec<String>>,
}

impl Held {
    /// What a text behind a raw prompt is held to.
    pub fn raw(form: Option<Form>) -> Option<Held> {
        form.map(|form| Held { form, lead: Lead::default(), marks: None })
    }

    /// What a chat's answer is held to.
    ///
    /// Errors: calls that cannot be required; two things at once.
    pub fn chat(
        form: Option<Form>,
        conversation: &Conversation,
        prompt: &Prompt,
        model: &Model,
    ) -> Result<Option<Held>, ApiError> {
        let tools = &conversation.tools;
        let syntax = model.syntax()?;
        let choice = match &tools.choice {
            Choice::Auto | Choice::None => None,
            Choice::Required => Some(ToolChoice::Required),
            Choice::Named(name) => Some(ToolChoice::Named(name)),
        };
        let both = |field: &str, what: &str| Err(ApiError::field(field, "invalid_value", what));
        let held = match (form, choice) {
            (None, None) => return Ok(None),
            (Some(form), Some(_)) => return both(&form.field, "an answer that is a call has no other form"),
            // A template without a way of calling gives plain text, tools or none.
            (Some(form), None) if conversation.input.tools.is_some() && syntax.format != Format::Plain => {
                let Rule::JsonSchema(schema) = &form.rule else {
                    let what = "beside tools that may be called an answer is held to a schema alone: wanted \
                                \"tool_choice\": \"none\"";
                    return both(&form.field, what);
                };
                let list = conversation.input.tools.clone().unwrap_or_default();
                let calls = syntax.calls(&list, ToolChoice::OrAnswer(schema), !tools.one_call);
                let calls = calls.map_err(|error| {
                    let field = match error {
                        CallsError::Answer { .. } => &form.field,
                        _ => "tools",
                    };
                    ApiError::field(field, "invalid_value", error.to_string())
                })?;
                let lead = syntax.lead(&prompt.text, Ahead::Calls);
                Held { form: Form::new(form.field, calls.rule), lead, marks: Some(calls.marks) }
            }
            (Some(form), None) => {
                let lead = syntax.lead(&prompt.text, Ahead::Content);
                Held { form, lead, marks: None }
            }
            (None, Some(choice)) => {
                let list = conversation.input.tools.clone().unwrap_or_default();
                let calls = syntax.calls(&list, choice, !tools.one_call);
                let calls = calls
                    .map_err(|error| ApiError::field(TOOL_CHOICE, "invalid_value", error.to_string()))?;
                let lead = syntax.lead(&prompt.text, Ahead::Calls);
                Held { form: Form::new(TOOL_CHOICE, calls.rule), lead, marks: Some(calls.marks) }
            }
        };
        if conversation.begun.is_some() {
            return both(&held.form.field, "an answer that goes on with a message is held to nothing");
        }
        Ok(Some(held))
    }

    /// Constraints of so many answers. It takes a while: not on a thread that others wait for.
    ///
    /// Errors: a form that is none, cannot be held, or costs too much, named by its field.
    pub fn constrain(&self, model: &Model, count: usize) -> Result<Vec<Box<dyn Constraint>>, ApiError> {
        let wrong =
            |error: ConstraintError| ApiError::field(&self.form.field, "invalid_value", error.to_string());
        let vocabulary = model.vocabulary(self.marks.as_deref()).map_err(wrong)?;
        let one =
            |_| Ok(Box::new(Asked(vocabulary.constrain(&self.form.rule, &self.lead).map_err(wrong)?)) as _);
        (0..count).map(one).collect()
    }
}

/// A text's constraint as the engine asks it.
struct Asked(constraint::Constraint);

impl Constraint for Asked {
    fn allowed(&mut self) -> Result<&[u32], ConstraintFailure> {
        Ok(self.0.allowed()?.words())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintFailure> {
        Ok(self.0.accept(token)?)
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Option<Form>, ApiError> {
        Form::read(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn forms_of_every_field() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let by_schema = Rule::JsonSchema(schema.clone());
        let choice = Rule::Grammar("start: \"a\" | \"b\\\"\"\n".into());
        for (body, field, rule) in [
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
                "response_format",
                by_schema.clone(),
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": schema}}),
                "response_format",
                by_schema.clone(),
            ),
            (json!({"guided_json": schema}), "guided_json", by_schema.clone()),
            (json!({"guided_json": schema.to_string()}), "guided_json", by_schema.clone()),
            (json!({"json_schema": schema}), "json_schema", by_schema.clone()),
            (json!({"structured_outputs": {"json": schema}}), "structured_outputs.json", by_schema),
            (json!({"guided_regex": "a+"}), "guided_regex", Rule::Regex("a+".into())),
            (json!({"grammar": "start: \"a\""}), "grammar", Rule::Grammar("start: \"a\"".into())),
            (json!({"guided_choice": ["a", "b\""]}), "guided_choice", choice),
        ] {
            assert_eq!(read(body).unwrap(), Some(Form::new(field, rule)));
        }
        for body in [
            json!({}),
            json!({"response_format": {"type": "text"}}),
            json!({"json_schema": {}, "grammar": ""}),
        ] {
            assert_eq!(read(body).unwrap(), None);
        }
        for (body, param) in [
            (json!({"response_format": 3}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
            (json!({"guided_choice": [3]}), "guided_choice"),
            (json!({"guided_regex": 3}), "guided_regex"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_regex": "a", "grammar": "start: \"a\""}), "guided_regex"),
            (json!({"structured_outputs": {"tag": 1}}), "structured_outputs.tag"),
        ] {
            assert_eq!(read(body).unwrap_err().param.as_deref(), Some(param));
        }
        let text = json!({"type": "json_schema", "name": "n", "schema": schema});
        assert_eq!(
            Form::of_text(&text, "text.format").unwrap(),
            Some(Form::new("text.format", Rule::JsonSchema(schema)))
        );
    }
}
