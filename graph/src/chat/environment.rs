//! The Jinja environment of chat templates: that of Hugging Face's renderer (transformers, `_compile_jinja_template`).
//!
//! Blocks are trimmed (`trim_blocks`, `lstrip_blocks`), nothing is escaped, loop controls are on, values have Python's
//! methods and Python's spelling, and there are `tojson`, `raise_exception`, `strftime_now` and the tag `generation`.

use std::{fmt, fmt::Write as _, time::SystemTime};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};

use super::json::{self, Style};

/// Steps of the template interpreter that one rendering may take. A template is part of a file that anyone may have made,
/// so it is not trusted to end; a prompt of a thousand messages takes about a hundredth of this.
const FUEL: u64 = 50_000_000;

/// The source of an error that the template raised on purpose.
#[derive(Debug)]
pub struct TemplateRaised(pub String);

impl fmt::Display for TemplateRaised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TemplateRaised {}

/// The environment, in which it is `now`.
pub fn environment(now: SystemTime) -> Environment<'static> {
    let mut env = Environment::new();
    #[expect(clippy::expect_used, reason = "the default delimiters are valid")]
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("delimiters");
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _state, value| {
        match as_float(value) {
            Some(float) => out.write_str(&json::python_float(float)),
            None => write!(out, "{value}"),
        }
        .map_err(Error::from)
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| match as_float(value) {
        Some(float) => Value::from(json::python_float(float)),
        None if value.as_str().is_some() => value.clone(),
        None => Value::from(value.to_string()),
    });
    for name in ["length", "count"] {
        env.add_filter(name, |value: &Value| match value.len() {
            // Undefined is empty, as it is in a loop.
            _ if value.is_undefined() => Ok(0),
            Some(len) => Ok(len),
            None => Err(Error::new(ErrorKind::InvalidOperation, format!("a {} has no length", value.kind()))),
        });
    }
    // Jinja asks Python: a string and a mapping have a length and items, too, and a string can be iterated over.
    env.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| {
        value.as_str().is_some() || (!value.is_none() && value.try_iter().is_ok())
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(TemplateRaised(message)))
    });
    env.add_function("strftime_now", move |format: String| {
        let now = chrono::DateTime::<chrono::Local>::from(now);
        let mut text = String::new();
        write!(text, "{}", now.format(&format)).map_err(|_| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown directive in {format:?}"))
        })?;
        Ok(text)
    });
    env
}

/// The value of a float, and of nothing else.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    f64::try_from(value.clone()).ok()
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, as `json.dumps` writes.
fn tojson(value: &Value, positional: &[Value], kwargs: Kwargs) -> Result<Value, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |index: usize| -> Result<Option<Value>, Error> {
        let value = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(NAMES[index])?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = argument(0)?.is_some_and(|v| v.is_true());
    let indent = match argument(1)? {
        None => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            // True is 1 in Python, and a negative width is none.
            None => " ".repeat(usize::try_from(i64::try_from(v)?.clamp(0, 1024)).unwrap_or(0)),
        }),
    };
    let (item_separator, key_separator) = match argument(2)? {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(pair) => {
            let texts: Option<Vec<String>> =
                pair.try_iter()?.map(|part| part.as_str().map(str::to_owned)).collect();
            match texts.as_deref() {
                Some([item, key]) => (item.clone(), key.clone()),
                _ => {
                    return Err(Error::new(
                        ErrorKind::InvalidOperation,
                        format!("tojson: found separators {pair}, wanted two strings"),
                    ));
                }
            }
        }
    };
    let sort_keys = argument(3)?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let style = Style { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    json::dumps(value, &style).map(Value::from)
}

/// `{% generation %}` and `{% endgeneration %}` mark the assistant's part for training and write nothing: they are replaced
/// by a condition that always holds.
pub fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, tail) = tag.split_at(end);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}
