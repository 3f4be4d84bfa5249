//! The Jinja environment of chat templates: that of Hugging Face's renderer (transformers, `_compile_jinja_template`).
//!
//! Blocks are trimmed (`trim_blocks`, `lstrip_blocks`), nothing is escaped, loop controls are on, values have Python's
//! methods and Python's spelling, and there are `tojson`, `raise_exception`, `strftime_now` and the tag `generation`.

use std::{collections::BTreeMap, fmt, fmt::Write as _, sync::Arc, time::SystemTime};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value,
    machinery::{self, CodeGenerator, Instructions},
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};

use super::{
    filters,
    json::{self, Style},
    limits::{Budget, FUEL},
    methods, operators, python, rewrite,
};

/// The source of an error that the template raised on purpose.
#[derive(Debug)]
pub struct TemplateRaised(pub String);

impl fmt::Display for TemplateRaised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TemplateRaised {}

/// How templates are read.
#[expect(clippy::expect_used, reason = "the default delimiters are valid")]
pub(super) fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("delimiters")
}

/// A template's instructions, and those of its blocks.
pub(super) type Compiled<'a> = (Instructions<'a>, BTreeMap<&'a str, Instructions<'a>>);

/// A template, parsed, rewritten and compiled. To be called on a thread with a known stack, after `limits::check_syntax`.
///
/// Errors: `source` is not valid Jinja.
pub(super) fn compile(source: &str) -> Result<Compiled<'_>, Error> {
    let root = machinery::parse(source, "<string>", syntax())?;
    let mut generator = CodeGenerator::new("<string>", source);
    generator.compile_stmt(&rewrite::statement(&root));
    Ok(generator.finish())
}

/// What a template writes for `variables`, where it is `now`. To be called as [`compile`].
///
/// Errors: the template fails, refuses, or breaks a bound of `budget`.
pub(super) fn render(
    source: &str,
    variables: Value,
    now: SystemTime,
    budget: &Arc<Budget>,
) -> Result<String, Error> {
    let env = environment(now, budget);
    let (instructions, blocks) = compile(source)?;
    let mut text = String::new();
    let mut output = machinery::make_string_output(&mut text);
    machinery::eval(&env, &instructions, variables, &blocks, &mut output, AutoEscape::None)?;
    drop(output);
    Ok(text)
}

/// The environment, in which it is `now`.
fn environment(now: SystemTime, budget: &Arc<Budget>) -> Environment<'static> {
    let mut env = Environment::new();
    // An error that prints the template's values would go over all of them.
    env.set_debug(false);
    env.set_syntax(syntax());
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    operators::add_to(&mut env, budget);
    methods::add_to(&mut env, budget);
    filters::add_to(&mut env, budget);
    let b = Arc::clone(budget);
    env.set_formatter(move |out, _state, value| {
        let text = match value.as_str() {
            Some(text) => {
                b.build(text.len())?;
                return out.write_str(text).map_err(Error::from);
            }
            None => python::text(value, &b)?,
        };
        out.write_str(&text).map_err(Error::from)
    });
    let b = Arc::clone(budget);
    env.add_filter("tojson", move |value: &Value, positional: &[Value], kwargs: Kwargs| {
        tojson(value, positional, kwargs, &b)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(TemplateRaised(message)))
    });
    let b = Arc::clone(budget);
    env.add_function("strftime_now", move |format: String| {
        // A directive of two characters writes 40 at most.
        b.build(format.len().saturating_mul(20))?;
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
fn tojson(value: &Value, positional: &[Value], kwargs: Kwargs, budget: &Budget) -> Result<Value, Error> {
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
    json::dumps(value, &style, budget).map(Value::from)
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
