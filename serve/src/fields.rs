//! The fields of a request's JSON object, taken one by one; an error names the field, what was found, and what was wanted.

use hyper::StatusCode;
use moe_run_text::chat::kind;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

use crate::error::ApiError;

/// A JSON object. A field that is null is as good as absent.
#[derive(Clone, Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    ///
    /// Errors: it is not JSON, or no object.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let wrong = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(other) => Err(wrong(format!("the body: found {}, wanted a JSON object", kind(&other)))),
            Err(error) => Err(wrong(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// Takes a field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A field as it is.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &mut self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong_type(name, &value, wanted)),
        }
    }

    /// Errors: it is no boolean.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// Errors: it is no string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Errors: it is no object.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.typed(name, "an object", |value| value.as_object().cloned())
    }

    /// Errors: it is no array.
    pub fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.typed(name, "an array", |value| value.as_array().cloned())
    }

    /// Errors: it is no number, or outside of the range.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.typed(name, "a number", Value::as_f64)? else { return Ok(None) };
        if range.contains(&value) {
            return Ok(Some(value));
        }
        Err(ApiError::field(
            name,
            "invalid_value",
            format!("found {value}, wanted {} to {}", range.start(), range.end()),
        ))
    }

    /// Errors: it is no whole number, or outside of the range.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        // Some clients write 16.0.
        let whole = |value: &Value| {
            let float = value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15);
            value.as_i64().or(float.map(|f| f as i64))
        };
        let Some(value) = self.typed(name, "a whole number", whole)? else { return Ok(None) };
        if range.contains(&value) {
            return Ok(Some(value));
        }
        let (start, end) = (range.start(), range.end());
        let wanted = if *end == i64::MAX { format!("{start} or more") } else { format!("{start} to {end}") };
        Err(ApiError::field(name, "invalid_value", format!("found {value}, wanted {wanted}")))
    }

    /// Refuses fields that would change the answer and are not heeded. `harmless` says which values change nothing.
    ///
    /// Errors: one of them is there, and asks for something.
    pub fn refuse(&mut self, fields: &[Refusal]) -> Result<(), ApiError> {
        for (name, why, harmless) in fields {
            if self.take(name).is_some_and(|value| !harmless(&value)) {
                return Err(ApiError::unsupported(*name, why));
            }
        }
        Ok(())
    }
}

/// A field's name, why it is refused, and which of its values change nothing.
pub type Refusal = (&'static str, &'static str, fn(&Value) -> bool);

/// No value.
pub fn never(_: &Value) -> bool {
    false
}

/// What is empty, false or zero asks for nothing.
pub fn if_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_set) => !is_set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// The error for a value of another type.
pub fn wrong_type(name: impl Into<String>, found: &Value, wanted: &str) -> ApiError {
    ApiError::field(name, "invalid_type", format!("found {}, wanted {wanted}", kind(found)))
}

/// The error for a field that has to be there.
pub fn missing(name: &str) -> ApiError {
    ApiError::field(name, "missing_required_parameter", "is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn errors_name_the_field_what_was_found_and_what_was_wanted() {
        let mut all = fields(r#"{"a": "x", "b": 3, "c": 1.5, "d": null, "e": 2.0, "f": -1}"#);
        assert_eq!(all.number("a", 0.0..=2.0).unwrap_err().message, "a: found a string, wanted a number");
        assert_eq!(all.number("b", 0.0..=2.0).unwrap_err().message, "b: found 3, wanted 0 to 2");
        assert_eq!(all.integer("c", 0..=9).unwrap_err().message, "c: found a number, wanted a whole number");
        assert_eq!(all.bool("d").unwrap(), None);
        assert_eq!(all.integer("e", 0..=9).unwrap(), Some(2));
        let error = all.integer("f", 1..=i64::MAX).unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.param.as_deref()),
            ("f: found -1, wanted 1 or more", Some("f"))
        );
    }

    #[test]
    fn bodies_that_are_no_objects() {
        for body in [&b""[..], b"[]", b"{", b"\"a\"", b"{\"a\": 1e999}", b"{\"a\": \"\\ud800\"}", b"\xff"] {
            assert_eq!(Fields::parse(body).unwrap_err().code, Some("invalid_json"));
        }
        let deep = "[".repeat(100_000);
        assert!(Fields::parse(format!("{{\"a\": {deep}").as_bytes()).is_err());
    }
}
