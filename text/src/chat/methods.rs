//! Methods of Python's strings, lists, tuples and dictionaries, which templates call: those that change nothing, as Hugging
//! Face's renderer (an immutable sandbox) allows. A method of a type goes before a key of the same name, as in Jinja.

use std::sync::Arc;

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    formatting::{FormatStyle, format},
    value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args},
};

use super::{
    limits::{Budget, beyond, wrong},
    operators::{elements, settled, type_name},
    python, rewrite,
    strings::{
        capitalized, centered, expanded_tabs, is_decimal, is_digit_sign, is_space, is_title, lines, part,
        replaced, split, title,
    },
};

/// The largest width that a method pads to.
const MAX_WIDTH: usize = 100_000;

/// Adds the filter that stands for a call of a method.
pub(super) fn add_to(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let budget = Arc::clone(budget);
    env.add_filter(
        rewrite::METHOD,
        move |state: &mut State<'_, '_>, value: &Value, name: &str, args: Rest<ValueOrKwargs>| {
            budget.tick()?;
            let args = args.into_values();
            let found = match value.kind() {
                ValueKind::String => string_method(&budget, value.as_str().unwrap_or_default(), name, &args)?,
                ValueKind::Map => mapping_method(&budget, value, name, &args)?,
                ValueKind::Seq => sequence_method(&budget, value, name, &args)?,
                _ => None,
            };
            let result = match found {
                Some(result) => result,
                None => value.call_method(state, name, &args).map_err(|error| match error.kind() {
                    ErrorKind::UnknownMethod => Error::new(
                        ErrorKind::UnknownMethod,
                        format!("a {} has no method {name:?}", type_name(value)),
                    ),
                    _ => error,
                })?,
            };
            budget.check(&result)?;
            settled(&budget, &result)
        },
    );
}

/// The arguments of a method by position or name, checked to be no more than these.
struct Arguments<'a> {
    positional: &'a [Value],
    named: Kwargs,
    names: &'a [&'a str],
    method: &'a str,
}

impl<'a> Arguments<'a> {
    fn new(method: &'a str, args: &'a [Value], names: &'a [&'a str]) -> Result<Arguments<'a>, Error> {
        let (positional, named): (&[Value], Kwargs) = from_args(args)?;
        if positional.len() > names.len() {
            return Err(Error::new(
                ErrorKind::TooManyArguments,
                format!("{method}: found {} arguments, wanted at most {}", positional.len(), names.len()),
            ));
        }
        Ok(Arguments { positional, named, names, method })
    }

    /// The argument in a place, if it is given and not none.
    fn optional(&self, place: usize) -> Result<Option<Value>, Error> {
        let value = match self.positional.get(place) {
            Some(value) => Some(value.clone()),
            None if self.named.has(self.names[place]) => Some(self.named.get::<Value>(self.names[place])?),
            None => None,
        };
        Ok(value.filter(|v| !v.is_none()))
    }

    fn value(&self, place: usize) -> Result<Value, Error> {
        self.optional(place)?.ok_or_else(|| {
            Error::new(ErrorKind::MissingArgument, format!("{}: wants {}", self.method, self.names[place]))
        })
    }

    fn wrong(&self, place: usize, value: &Value, wanted: &str) -> Error {
        wrong(format!("{}: {} is a {}, wanted {wanted}", self.method, self.names[place], type_name(value)))
    }

    fn optional_text(&self, place: usize) -> Result<Option<String>, Error> {
        match self.optional(place)? {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(self.wrong(place, &value, "a string")),
            },
        }
    }

    fn text(&self, place: usize) -> Result<String, Error> {
        let value = self.value(place)?;
        match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.wrong(place, &value, "a string")),
        }
    }

    /// One string or a tuple of several.
    fn texts(&self, place: usize) -> Result<Vec<String>, Error> {
        let value = self.value(place)?;
        if let Some(text) = value.as_str() {
            return Ok(vec![text.to_owned()]);
        }
        if value.is_tuple() {
            let texts: Option<Vec<String>> =
                value.try_iter()?.map(|v| v.as_str().map(str::to_owned)).collect();
            if let Some(texts) = texts {
                return Ok(texts);
            }
        }
        Err(self.wrong(place, &value, "a string or a tuple of strings"))
    }

    fn integer(&self, place: usize) -> Result<Option<i64>, Error> {
        match self.optional(place)? {
            None => Ok(None),
            Some(value) if value.is_integer() || value.kind() == ValueKind::Bool => Ok(Some(
                i64::try_from(value.clone()).map_err(|_| self.wrong(place, &value, "a smaller integer"))?,
            )),
            Some(value) => Err(self.wrong(place, &value, "an integer")),
        }
    }

    fn width(&self, place: usize) -> Result<usize, Error> {
        let width = self.integer(place)?.ok_or_else(|| {
            Error::new(ErrorKind::MissingArgument, format!("{}: wants {}", self.method, self.names[place]))
        })?;
        let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
        if width > MAX_WIDTH {
            return Err(beyond(format!("{}: a width of {width}, at most {MAX_WIDTH}", self.method)));
        }
        Ok(width)
    }

    /// Errors: there are named arguments that were not asked for.
    fn end(&self) -> Result<(), Error> {
        self.named.assert_all_used()
    }
}

fn list(items: impl IntoIterator<Item = String>) -> Value {
    items.into_iter().map(Value::from).collect::<Vec<Value>>().into()
}

/// A method of strings, `None` where Python's have no such method.
fn string_method(budget: &Budget, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    // No method but those that check for themselves makes more than three times what it is given.
    budget.build(text.len().saturating_mul(3))?;
    let parse = |names: &'static [&'static str]| Arguments::new(name, args, names);
    let none = || -> Result<(), Error> { parse(&[])?.end() };
    let all = |predicate: fn(char) -> bool| !text.is_empty() && text.chars().all(predicate);
    let cased = || text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
    let result = match name {
        "upper" => none().map(|()| text.to_uppercase().into()),
        "lower" => none().map(|()| text.to_lowercase().into()),
        // Full case folding differs from lower case in few letters; the ones that occur are these.
        "casefold" => none().map(|()| text.to_lowercase().replace('ß', "ss").replace('ς', "σ").into()),
        "capitalize" => none().map(|()| capitalized(text).into()),
        "title" => none().map(|()| title(text).into()),
        "swapcase" => none().map(|()| {
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                if c.is_uppercase() { out.extend(c.to_lowercase()) } else { out.extend(c.to_uppercase()) }
            }
            out.into()
        }),
        "islower" => none().map(|()| (cased() && !text.chars().any(char::is_uppercase)).into()),
        "isupper" => none().map(|()| (cased() && !text.chars().any(char::is_lowercase)).into()),
        "istitle" => none().map(|()| is_title(text).into()),
        "isspace" => none().map(|()| all(is_space).into()),
        "isalpha" => none().map(|()| all(char::is_alphabetic).into()),
        "isalnum" => none().map(|()| all(char::is_alphanumeric).into()),
        "isascii" => none().map(|()| text.is_ascii().into()),
        "isdecimal" => none().map(|()| all(is_decimal).into()),
        "isdigit" => none().map(|()| all(|c| is_decimal(c) || is_digit_sign(c)).into()),
        "isnumeric" => none().map(|()| all(char::is_numeric).into()),
        "isidentifier" => none().map(|()| {
            let starts = text.chars().next().is_some_and(|c| c == '_' || c.is_alphabetic());
            (starts && text.chars().all(|c| c == '_' || c.is_alphanumeric())).into()
        }),
        "isprintable" => {
            none().map(|()| (!text.chars().any(|c| c != ' ' && (c.is_control() || is_space(c)))).into())
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = parse(&["chars"])?;
            let chars = args.optional_text(0)?;
            args.end()?;
            let drop = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
            Ok(match name {
                "strip" => text.trim_matches(drop),
                "lstrip" => text.trim_start_matches(drop),
                _ => text.trim_end_matches(drop),
            }
            .into())
        }
        "removeprefix" => {
            let args = parse(&["prefix"])?;
            let prefix = args.text(0)?;
            args.end().map(|()| text.strip_prefix(prefix.as_str()).unwrap_or(text).into())
        }
        "removesuffix" => {
            let args = parse(&["suffix"])?;
            let suffix = args.text(0)?;
            args.end().map(|()| text.strip_suffix(suffix.as_str()).unwrap_or(text).into())
        }
        "startswith" | "endswith" => {
            let args = parse(&["prefix", "start", "end"])?;
            let wanted = args.texts(0)?;
            let part = part(text, args.integer(1)?, args.integer(2)?);
            args.end()?;
            Ok(part
                .is_some_and(|(_, part)| {
                    wanted.iter().any(|w| match name {
                        "startswith" => part.starts_with(w.as_str()),
                        _ => part.ends_with(w.as_str()),
                    })
                })
                .into())
        }
        "find" | "rfind" | "index" | "rindex" => {
            let args = parse(&["sub", "start", "end"])?;
            let wanted = args.text(0)?;
            let part = part(text, args.integer(1)?, args.integer(2)?);
            args.end()?;
            let found = part.and_then(|(start, part)| {
                let at = if name.starts_with('r') { part.rfind(&wanted) } else { part.find(&wanted) };
                at.map(|at| start + part[..at].chars().count())
            });
            match found {
                Some(at) => Ok(at.into()),
                None if name.ends_with("find") => Ok(Value::from(-1)),
                None => Err(wrong(format!("{name}: {wanted:?} is not found"))),
            }
        }
        "count" => {
            let args = parse(&["sub", "start", "end"])?;
            let wanted = args.text(0)?;
            let part = part(text, args.integer(1)?, args.integer(2)?);
            args.end()?;
            Ok(part
                .map_or(0, |(_, part)| match wanted.is_empty() {
                    true => part.chars().count() + 1,
                    false => part.matches(wanted.as_str()).count(),
                })
                .into())
        }
        "replace" => {
            let args = parse(&["old", "new", "count"])?;
            let (old, new, most) = (args.text(0)?, args.text(1)?, args.integer(2)?);
            args.end()?;
            replaced(budget, text, &old, &new, most).map(Value::from)
        }
        "split" | "rsplit" => {
            let args = parse(&["sep", "maxsplit"])?;
            let (separator, most) = (args.optional_text(0)?, args.integer(1)?);
            args.end()?;
            if separator.as_deref() == Some("") {
                return Err(wrong(format!("{name}: an empty separator")));
            }
            let parts = split(text, separator.as_deref(), most, name == "rsplit");
            budget.build_elements(parts.len())?;
            Ok(list(parts))
        }
        "splitlines" => {
            let args = parse(&["keepends"])?;
            let keep = args.optional(0)?.is_some_and(|v| v.is_true());
            args.end()?;
            let lines = lines(text, keep);
            budget.build_elements(lines.len())?;
            Ok(list(lines))
        }
        "partition" | "rpartition" => {
            let args = parse(&["sep"])?;
            let separator = args.text(0)?;
            args.end()?;
            if separator.is_empty() {
                return Err(wrong(format!("{name}: an empty separator")));
            }
            let parts = match (name, text.split_once(&separator), text.rsplit_once(&separator)) {
                ("partition", Some((before, after)), _) | ("rpartition", _, Some((before, after))) => {
                    [before, separator.as_str(), after]
                }
                ("partition", ..) => [text, "", ""],
                _ => ["", "", text],
            };
            Ok(Value::from(Tuple::new(parts.into_iter().map(Value::from).collect())))
        }
        "join" => {
            let args = parse(&["iterable"])?;
            let items = args.value(0)?;
            args.end()?;
            joined(budget, text, &items).map(Value::from)
        }
        "center" | "ljust" | "rjust" => {
            let args = parse(&["width", "fillchar"])?;
            let (width, fill) = (args.width(0)?, args.optional_text(1)?);
            args.end()?;
            let fill = fill.as_deref().unwrap_or(" ");
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Err(wrong(format!("{name}: fillchar is not one character")));
            };
            budget.build(width.saturating_mul(fill.len_utf8()))?;
            let missing = fill.to_string().repeat(width.saturating_sub(text.chars().count()));
            Ok(match name {
                "center" => centered(text, width, fill),
                "ljust" => format!("{text}{missing}"),
                _ => format!("{missing}{text}"),
            }
            .into())
        }
        "zfill" => {
            let args = parse(&["width"])?;
            let width = args.width(0)?;
            args.end()?;
            budget.build(width)?;
            let zeros = "0".repeat(width.saturating_sub(text.chars().count()));
            Ok(match text.strip_prefix(['+', '-']) {
                Some(digits) => format!("{}{zeros}{digits}", &text[..1]),
                None => format!("{zeros}{text}"),
            }
            .into())
        }
        "expandtabs" => {
            let args = parse(&["tabsize"])?;
            let size = args.integer(0)?.unwrap_or(8);
            args.end()?;
            let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
            budget.build(text.matches('\t').count().saturating_mul(size))?;
            Ok(expanded_tabs(text, size).into())
        }
        "format" => {
            for arg in args {
                budget.check(arg)?;
            }
            formatted(budget, text, args).map(Value::from)
        }
        _ => return Ok(None),
    };
    result.map(Some)
}

/// `format.format(*args, **kwargs)`: `{}`, `{0}`, `{name.attribute[key]!r:>8}`.
///
/// Errors: a field that is not given, a specification that the value does not have; the result is too large.
fn formatted(budget: &Budget, text: &str, args: &[Value]) -> Result<String, Error> {
    let wrong = |detail: String| wrong(format!("format: {detail}"));
    let (positional, named): (&[Value], Kwargs) = from_args(args)?;
    let mut out = String::new();
    let mut next = 0;
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..];
        if brace.starts_with("{{") || brace.starts_with("}}") {
            out.push_str(&brace[..1]);
            rest = &brace[2..];
            continue;
        }
        let Some(end) = brace.find('}').filter(|_| brace.starts_with('{')) else {
            return Err(wrong(format!("a single brace in {text:?}")));
        };
        let field = &brace[1..end];
        rest = &brace[end + 1..];
        let (field, specification) = field.split_once(':').unwrap_or((field, ""));
        let (path, conversion) = field.split_once('!').unwrap_or((field, ""));
        let base = &path[..path.find(['.', '[']).unwrap_or(path.len())];
        let mut value = if base.is_empty() || base.bytes().all(|b| b.is_ascii_digit()) {
            let place = if base.is_empty() { next } else { base.parse().unwrap_or(usize::MAX) };
            next += usize::from(base.is_empty());
            positional.get(place).cloned().ok_or_else(|| wrong(format!("argument {place} is not given")))?
        } else {
            named.get::<Option<Value>>(base)?.ok_or_else(|| wrong(format!("{base:?} is not given")))?
        };
        let mut steps = &path[base.len()..];
        while !steps.is_empty() {
            (value, steps) = match steps.strip_prefix('[').and_then(|key| key.split_once(']')) {
                Some((key, after)) => match key.parse::<usize>() {
                    Ok(index) => (value.get_item_by_index(index)?, after),
                    Err(_) => (value.get_item(&Value::from(key))?, after),
                },
                None => {
                    let name = steps.trim_start_matches('.');
                    let end = name.find(['.', '[']).unwrap_or(name.len());
                    if name.len() == steps.len() || end == 0 {
                        return Err(wrong(format!("no field: {path:?}")));
                    }
                    (value.get_attr(&name[..end])?, &name[end..])
                }
            };
        }
        let value = match conversion {
            "" => value,
            "s" => python::text(&value, budget)?.into(),
            "r" | "a" => python::repr(&value, budget)?.into(),
            other => return Err(wrong(format!("no conversion: {other:?}"))),
        };
        let piece = if specification.is_empty() {
            python::text(&value, budget)?
        } else {
            if specification.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3) {
                return Err(beyond("format: a width or precision of more than three digits"));
            }
            format(FormatStyle::StrFormat, &format!("{{:{specification}}}"), &[value])?
        };
        budget.build(piece.len())?;
        out.push_str(&piece);
    }
    out.push_str(rest);
    Ok(out)
}

/// `separator.join(items)`: all of them strings.
fn joined(budget: &Budget, separator: &str, items: &Value) -> Result<String, Error> {
    let items = elements(budget, items)?;
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        let Some(text) = item.as_str() else {
            return Err(wrong(format!("join: item {index} is a {}, wanted a string", type_name(item))));
        };
        budget.build(text.len() + separator.len())?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(out)
}

/// A method of mappings, `None` where Python's dictionaries have no such method.
fn mapping_method(
    budget: &Budget,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let none = || Arguments::new(name, args, &[])?.end();
    match name {
        "keys" => none()?,
        "values" => none()?,
        "items" => none()?,
        "copy" => none()?,
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            budget.check(key)?;
            let found = value.get_item(key)?;
            return Ok(Some(if found.is_undefined() {
                default.unwrap_or_else(|| Value::from(()))
            } else {
                found
            }));
        }
        _ => return Ok(None),
    }
    let keys = elements(budget, value)?;
    let pairs = keys.into_iter().map(|key| value.get_item(&key).map(|item| (key, item)));
    Ok(Some(match name {
        "keys" => {
            Value::from(pairs.map(|pair| pair.map(|(key, _)| key)).collect::<Result<Vec<Value>, Error>>()?)
        }
        "values" => {
            Value::from(pairs.map(|pair| pair.map(|(_, item)| item)).collect::<Result<Vec<Value>, Error>>()?)
        }
        "items" => Value::from(
            pairs
                .map(|pair| pair.map(|(key, item)| Value::from(Tuple::new(vec![key, item]))))
                .collect::<Result<Vec<Value>, Error>>()?,
        ),
        _ => Value::from_pairs(pairs.collect::<Result<Vec<(Value, Value)>, Error>>()?),
    }))
}

/// A method of lists and tuples, `None` where Python's have no such method.
fn sequence_method(
    budget: &Budget,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match name {
        "count" => {
            let (wanted,): (&Value,) = from_args(args)?;
            budget.check(value)?;
            budget.check(wanted)?;
            Ok(Some(value.try_iter()?.filter(|item| item == wanted).count().into()))
        }
        "index" => {
            let args = Arguments::new(name, args, &["value", "start", "stop"])?;
            let wanted = args.value(0)?;
            let (start, stop) = (args.integer(1)?, args.integer(2)?);
            args.end()?;
            budget.check(value)?;
            budget.check(&wanted)?;
            let len = i64::try_from(value.len().unwrap_or(0)).unwrap_or(i64::MAX);
            let placed = |at: i64| if at < 0 { (at + len).max(0) } else { at };
            let (start, stop) = (start.map_or(0, placed), stop.map_or(len, placed));
            let found = value
                .try_iter()?
                .zip(0_i64..)
                .find(|(item, at)| (start..stop).contains(at) && *item == wanted)
                .map(|(_, at)| Value::from(at));
            match found {
                Some(at) => Ok(Some(at)),
                None => Err(wrong("index: the value is not in the list")),
            }
        }
        "copy" if !value.is_tuple() => {
            Arguments::new(name, args, &[])?.end()?;
            Ok(Some(Value::from(elements(budget, value)?)))
        }
        "append" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" | "clear"
            if !value.is_tuple() =>
        {
            Err(wrong(format!(
                "{name}: templates may not change lists (neither may they in Hugging Face's renderer)"
            )))
        }
        _ => Ok(None),
    }
}
