//! JSON → template values, and template values → JSON as Python's `json.dumps` writes it: models were trained on that
//! spelling.

use std::fmt::Write as _;

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::{environment::as_float, limits::Budget};

/// JSON → template value, keys in their order.
pub fn to_template(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(unsigned), ..) => Value::from(unsigned),
            (None, Some(signed), _) => Value::from(signed),
            (None, None, float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(to_template).collect::<Vec<Value>>().into(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(k, v)| (k.as_str(), to_template(v)))),
    }
}

/// The keyword arguments of `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub struct Style {
    /// Whether characters outside of ASCII are escaped.
    pub ensure_ascii: bool,
    /// What one level is indented by; everything is on one line where absent.
    pub indent: Option<String>,
    /// Between items.
    pub item_separator: String,
    /// Between a key and its value.
    pub key_separator: String,
    /// Whether keys are sorted by their characters.
    pub sort_keys: bool,
}

/// Deeper nesting than this is refused, as a template may have made it.
const MAX_DEPTH: usize = 128;

/// Value → JSON.
///
/// Errors: an undefined value, or one that JSON cannot hold; too deep nesting; more text than `budget` allows.
pub(super) fn dumps(value: &Value, style: &Style, budget: &Budget) -> Result<String, Error> {
    let mut out = String::new();
    write_value(&mut out, value, style, budget, 0)?;
    Ok(out)
}

fn write_value(
    out: &mut String,
    value: &Value,
    style: &Style,
    budget: &Budget,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            budget.build(text.len())?;
            write_string(out, text, style);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ('[', ']'), items.len(), style, budget, depth, |out, i| {
                write_value(out, &items[i], style, budget, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut entries: Vec<(String, Value)> = Vec::new();
            for key in value.try_iter()? {
                entries.push((key_text(&key)?, value.get_item(&key)?));
            }
            if style.sort_keys {
                // UTF-8 sorts like its characters, as Python's strings do.
                entries.sort_by(|a, b| a.0.cmp(&b.0));
            }
            write_items(out, ('{', '}'), entries.len(), style, budget, depth, |out, i| {
                write_string(out, &entries[i].0, style);
                out.push_str(&style.key_separator);
                write_value(out, &entries[i].1, style, budget, depth + 1)
            })?;
        }
        kind => {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: JSON has no {kind}")));
        }
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    (open, close): (char, char),
    len: usize,
    style: &Style,
    budget: &Budget,
    depth: usize,
    mut write_item: impl FnMut(&mut String, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, levels: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            for _ in 0..levels {
                out.push_str(indent);
            }
        }
    };
    // What stands between the items can be long, as the template chooses it.
    let indent = style.indent.as_ref().map_or(0, |indent| indent.len() * (depth + 1));
    let between = indent + style.item_separator.len() + style.key_separator.len() + 1;
    out.push(open);
    for i in 0..len {
        budget.build(between)?;
        if i > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, depth + 1);
        write_item(out, i)?;
    }
    if len > 0 {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// A key as Python spells it: strings as they are, other scalars as in JSON.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a key cannot be a {kind}"))),
    }
}

fn number(value: &Value) -> String {
    match as_float(value) {
        Some(float) if float.is_nan() => "NaN".to_owned(),
        Some(float) if float == f64::INFINITY => "Infinity".to_owned(),
        Some(float) if float == f64::NEG_INFINITY => "-Infinity".to_owned(),
        Some(float) => python_float(float),
        None => value.to_string(),
    }
}

fn write_string(out: &mut String, text: &str, style: &Style) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && !matches!(c, ' '..='~')) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A float as Python's `repr` spells it: the shortest digits that give the same value, with an exponent below 1e-4 and from
/// 1e16 on.
pub fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || value == 0.0 {
        let fixed = value.to_string();
        return if fixed.contains('.') { fixed } else { format!("{fixed}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_spells_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1.25e-5, "1.25e-05"),
            (123456789.125, "123456789.125"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
