//! Jinja's filters, tests and globals where minijinja has none, or has them without bounds or with other results than
//! Hugging Face's renderer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use minijinja::{
    Environment, Error, ErrorKind, State, Value, functions,
    value::{Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs},
};

use super::{
    environment::as_float,
    limits::{Budget, beyond, wrong},
    operators::{elements, type_name},
    python,
    strings::{centered, replaced},
};

/// The largest number of columns, places or widths that a filter is asked for.
const MAX_NUMBER: usize = 100_000;

/// Adds them to an environment.
pub(super) fn add_to(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    add_text_filters(env, budget);
    add_list_filters(env, budget);
    add_tests(env);
    add_globals(env, budget);
}

fn bounded(what: &str, number: Option<i64>, default: usize) -> Result<usize, Error> {
    let Some(number) = number else { return Ok(default) };
    let number = usize::try_from(number.max(0)).unwrap_or(usize::MAX);
    if number > MAX_NUMBER {
        return Err(beyond(format!("{what} {number}, at most {MAX_NUMBER}")));
    }
    Ok(number)
}

fn add_text_filters(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let b = Arc::clone(budget);
    env.add_filter("string", move |value: &Value| match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => python::text(value, &b).map(Value::from),
    });
    let b = Arc::clone(budget);
    env.add_filter("pprint", move |value: &Value| python::repr(value, &b));
    let b = Arc::clone(budget);
    env.add_filter("format", move |format: &str, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let named = args.last().filter(|last| last.is_kwargs() && args.len() == 1);
        let arguments = named.cloned().unwrap_or_else(|| Value::from(Tuple::new(args.to_vec())));
        python::percent(format, &arguments, &b)
    });
    let b = Arc::clone(budget);
    env.add_filter("replace", move |value: &Value, old: &Value, new: &Value, count: Option<i64>| {
        let text = |value: &Value| python::text(value, &b);
        replaced(&b, &text(value)?, &text(old)?, &text(new)?, count)
    });
    let b = Arc::clone(budget);
    env.add_filter(
        "indent",
        move |value: &Value,
              width: Option<Value>,
              first: Option<bool>,
              blank: Option<bool>,
              kwargs: Kwargs| {
            let width = match width {
                Some(width) => Some(width),
                None => kwargs.get::<Option<Value>>("width")?,
            };
            let first = first.or(kwargs.get("first")?).unwrap_or(false);
            let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            let unit = match width {
                None => " ".repeat(4),
                Some(width) => match width.as_str() {
                    Some(text) => text.to_owned(),
                    None => " ".repeat(bounded("indent: a width of", Some(i64::try_from(width)?), 4)?),
                },
            };
            let text = python::text(value, &b)?;
            indented(&b, &text, &unit, first, blank)
        },
    );
    let b = Arc::clone(budget);
    env.add_filter("center", move |value: &Value, width: Option<i64>| {
        let width = bounded("center: a width of", width, 80)?;
        let text = python::text(value, &b)?;
        b.build(text.len() + width)?;
        Ok::<String, Error>(centered(&text, width, ' '))
    });
    let b = Arc::clone(budget);
    env.add_filter("truncate", move |value: &Value, args: &[Value], kwargs: Kwargs| {
        let text = python::text(value, &b)?;
        let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
            match args.get(place) {
                Some(value) => Ok(Some(value.clone())),
                None => kwargs.get::<Option<Value>>(name),
            }
        };
        let integer = |value: Option<Value>| value.map(i64::try_from).transpose();
        let length = bounded("truncate: a length of", integer(argument(0, "length")?)?, 255)?;
        let kill_words = argument(1, "killwords")?.is_some_and(|v| v.is_true());
        let end = argument(2, "end")?.map_or(Ok("...".to_owned()), |v| python::text(&v, &b))?;
        let leeway = bounded("truncate: a leeway of", integer(argument(3, "leeway")?)?, 5)?;
        kwargs.assert_all_used()?;
        truncated(&text, length, kill_words, &end, leeway)
    });
    let b = Arc::clone(budget);
    env.add_filter("wordcount", move |value: &Value| {
        let text = python::text(value, &b)?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        Ok::<usize, Error>(text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count())
    });
    let b = Arc::clone(budget);
    env.add_filter(
        "wordwrap",
        move |value: &Value, width: Option<i64>, long: Option<bool>, kwargs: Kwargs| {
            let width = bounded("wordwrap: a width of", width.or(kwargs.get("width")?), 79)?;
            let break_long = long.or(kwargs.get("break_long_words")?).unwrap_or(true);
            let separator: Option<String> = kwargs.get("wrapstring")?;
            kwargs.assert_all_used()?;
            let separator = separator.unwrap_or_else(|| "\n".to_owned());
            let text = python::text(value, &b)?;
            if width == 0 {
                return Err(wrong("wordwrap: a width of 0".to_owned()));
            }
            b.build(text.len().saturating_mul(2 + separator.len()))?;
            let lines: Vec<String> =
                text.lines().map(|line| wrapped(line, width, break_long).join(&separator)).collect();
            Ok(lines.join(&separator))
        },
    );
    let b = Arc::clone(budget);
    env.add_filter("striptags", move |value: &Value| {
        let text = python::text(value, &b)?;
        Ok::<String, Error>(without_tags(&text))
    });
    let b = Arc::clone(budget);
    env.add_filter("xmlattr", move |value: &Value, space: Option<bool>| {
        let mut out = String::new();
        for key in elements(&b, value)? {
            let item = value.get_item(&key)?;
            if item.is_none() || item.is_undefined() {
                continue;
            }
            let name = python::text(&key, &b)?;
            if name.contains(|c: char| c.is_whitespace() || "/>=".contains(c)) {
                return Err(wrong(format!("xmlattr: {name:?} is no name of an attribute")));
            }
            let value = escaped(&python::text(&item, &b)?);
            b.build(name.len() + value.len() + 4)?;
            out.push_str(&format!("{}{}=\"{value}\"", if out.is_empty() { "" } else { " " }, escaped(&name)));
        }
        Ok::<String, Error>(if space.unwrap_or(true) && !out.is_empty() { format!(" {out}") } else { out })
    });
    for name in ["escape", "e", "forceescape"] {
        let b = Arc::clone(budget);
        env.add_filter(name, move |value: &Value| python::text(value, &b).map(|text| escaped(&text)));
    }
    let b = Arc::clone(budget);
    env.add_filter("urlencode", move |value: &Value| {
        if value.kind() != ValueKind::Map {
            return python::text(value, &b).map(|text| url_quoted(&text, false));
        }
        let mut pairs = Vec::new();
        for key in elements(&b, value)? {
            let item = python::text(&value.get_item(&key)?, &b)?;
            pairs.push(format!("{}={}", url_quoted(&python::text(&key, &b)?, true), url_quoted(&item, true)));
        }
        Ok(pairs.join("&"))
    });
    env.add_filter("int", |value: &Value, default: Option<Value>, base: Option<u32>| {
        let base = base.filter(|base| (2..=36).contains(base)).unwrap_or(10);
        integer(value, base).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0)))
    });
    env.add_filter("float", |value: &Value, default: Option<Value>| {
        let float = match value.as_str() {
            Some(text) => text.trim().replace('_', "").parse().ok(),
            None => f64::try_from(value.clone()).ok(),
        };
        float.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
    });
    env.add_filter("filesizeformat", |value: &Value, binary: Option<bool>| {
        let bytes = match value.as_str() {
            Some(text) => {
                text.trim().parse().map_err(|_| wrong(format!("filesizeformat: {text:?} is no number")))?
            }
            None => f64::try_from(value.clone())?,
        };
        Ok::<String, Error>(file_size(bytes, binary.unwrap_or(false)))
    });
}

/// Jinja's `indent`: lines but the first, empty ones left as they are.
fn indented(budget: &Budget, text: &str, unit: &str, first: bool, blank: bool) -> Result<String, Error> {
    // As Python's splitlines with a line end appended: a final line end makes one more, empty line.
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    budget.build(text.len().saturating_add(lines.len().saturating_mul(unit.len() + 1)))?;
    let mut out = String::with_capacity(text.len());
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) {
            out.push_str(unit);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn truncated(text: &str, length: usize, kill_words: bool, end: &str, leeway: usize) -> Result<String, Error> {
    let end_length = end.chars().count();
    if length < end_length {
        return Err(wrong(format!(
            "truncate: a length of {length}, wanted at least that of the end, {end_length}"
        )));
    }
    if text.chars().count() <= length + leeway {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(length - end_length).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((before, _)) if !kill_words => before.to_owned(),
        _ => kept,
    };
    Ok(kept + end)
}

/// One line → lines of at most `width` characters, broken between words, and inside of words that are longer.
fn wrapped(line: &str, width: usize, break_long: bool) -> Vec<String> {
    // Words and the blanks between them take turns; a word may be broken after a hyphen between letters.
    let mut chunks: Vec<String> = Vec::new();
    let mut chars = line.chars().peekable();
    let (mut before, mut broken) = (' ', false);
    while let Some(c) = chars.next() {
        let blank = c.is_whitespace();
        match chunks.last_mut() {
            Some(chunk) if !broken && chunk.starts_with(char::is_whitespace) == blank => chunk.push(c),
            _ => chunks.push(c.to_string()),
        }
        broken = c == '-' && before.is_alphabetic() && chars.peek().is_some_and(|next| next.is_alphabetic());
        before = c;
    }
    chunks.reverse();
    let mut lines = Vec::new();
    while !chunks.is_empty() {
        let (mut current, mut length) = (Vec::new(), 0);
        if !lines.is_empty() && chunks.last().is_some_and(|chunk| chunk.starts_with(char::is_whitespace)) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.pop() {
            let size = chunk.chars().count();
            if length + size <= width {
                length += size;
                current.push(chunk);
                continue;
            }
            if size > width && break_long {
                let room = width - length;
                current.push(chunk.chars().take(room).collect());
                chunks.push(chunk.chars().skip(room).collect());
            } else if size > width && current.is_empty() {
                current.push(chunk);
            } else {
                chunks.push(chunk);
            }
            break;
        }
        if current.last().is_some_and(|chunk: &String| chunk.starts_with(char::is_whitespace)) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.concat());
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Percent-encoded UTF-8; in a query, blanks become `+` and slashes are encoded, too.
fn url_quoted(text: &str, query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// `int(value)`: numbers are cut, texts may have a prefix of their base or a fraction; `None` for the rest.
fn integer(value: &Value, base: u32) -> Option<Value> {
    let cut = |float: f64| float.is_finite().then(|| Value::from(float.trunc() as i128));
    let Some(text) = value.as_str() else {
        return match as_float(value) {
            Some(float) => cut(float),
            None => i128::try_from(value.clone()).ok().map(Value::from),
        };
    };
    let text = text.trim().replace('_', "");
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text.as_str()),
    };
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(digits);
    match i128::from_str_radix(&format!("{sign}{digits}"), base) {
        Ok(integer) if !digits.starts_with(['-', '+']) => Some(Value::from(integer)),
        _ => text.parse().ok().and_then(cut),
    }
}

/// Without comments and tags, blanks joined, the five entities of XML resolved.
fn without_tags(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        let end = match tag.strip_prefix("<!--") {
            Some(comment) => comment.find("-->").map(|end| end + 7),
            None => tag.find('>').map(|end| end + 1),
        };
        let Some(end) = end else { break };
        kept.push_str(before);
        rest = &tag[end..];
    }
    kept.push_str(rest);
    let joined = kept.split_whitespace().collect::<Vec<&str>>().join(" ");
    [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
        .into_iter()
        .fold(joined, |text, (entity, c)| text.replace(entity, c))
}

fn file_size(bytes: f64, binary: bool) -> String {
    let (base, units) = if binary {
        (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"])
    } else {
        (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"])
    };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc());
    }
    let mut unit_size = base;
    for unit in units {
        if bytes < unit_size * base {
            return format!("{:.1} {unit}", bytes / unit_size);
        }
        unit_size *= base;
    }
    format!("{:.1} {}", bytes / unit_size * base, units[units.len() - 1])
}

fn add_list_filters(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    for name in ["length", "count"] {
        env.add_filter(name, |value: &Value| match value.len() {
            // Undefined is empty, as it is in a loop.
            _ if value.is_undefined() => Ok(0),
            Some(len) => Ok(len),
            None => Err(wrong(format!("a {} has no length", type_name(value)))),
        });
    }
    let b = Arc::clone(budget);
    env.add_filter(
        "join",
        move |value: &Value, separator: Option<Value>, attribute: Option<Value>, kwargs: Kwargs| {
            let separator = match separator.or(kwargs.get("d")?) {
                Some(separator) => python::text(&separator, &b)?,
                None => String::new(),
            };
            let attribute = attribute.or(kwargs.get("attribute")?);
            kwargs.assert_all_used()?;
            let mut out = String::new();
            for (index, item) in elements(&b, value)?.into_iter().enumerate() {
                let item = match &attribute {
                    None => item,
                    Some(attribute) => match attribute.as_str() {
                        Some(path) => at_path(&item, path)?,
                        None => item.get_item(attribute)?,
                    },
                };
                let text = python::text(&item, &b)?;
                b.build(separator.len())?;
                if index > 0 {
                    out.push_str(&separator);
                }
                out.push_str(&text);
            }
            Ok::<String, Error>(out)
        },
    );
    let b = Arc::clone(budget);
    env.add_filter("list", move |value: &Value| elements(&b, value));
    let b = Arc::clone(budget);
    env.add_filter("reverse", move |value: &Value| match value.as_str() {
        Some(text) => Ok(Value::from(text.chars().rev().collect::<String>())),
        None => {
            let mut items = elements(&b, value)?;
            items.reverse();
            Ok(Value::from(items))
        }
    });
    let b = Arc::clone(budget);
    env.add_filter("batch", move |value: &Value, size: i64, fill: Option<Value>| {
        let size = bounded("batch: a size of", Some(size), 1)?.max(1);
        let items = elements(&b, value)?;
        let mut rows: Vec<Value> = Vec::new();
        for chunk in items.chunks(size) {
            let mut row = chunk.to_vec();
            if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none() && row.len() < size) {
                b.build_elements(size)?;
                row.resize(size, fill.clone());
            }
            rows.push(row.into());
        }
        Ok::<Vec<Value>, Error>(rows)
    });
    let b = Arc::clone(budget);
    env.add_filter("slice", move |value: &Value, count: i64, fill: Option<Value>| {
        let count = bounded("slice: a count of", Some(count), 1)?;
        if count == 0 {
            return Err(wrong("slice: a count of 0".to_owned()));
        }
        let items = elements(&b, value)?;
        b.build_elements(count)?;
        let (each, longer) = (items.len() / count, items.len() % count);
        let mut rest = items.into_iter();
        let columns = (0..count).map(|column| {
            let mut column_items: Vec<Value> =
                rest.by_ref().take(each + usize::from(column < longer)).collect();
            if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none() && column >= longer && longer > 0)
            {
                column_items.push(fill.clone());
            }
            Value::from(column_items)
        });
        Ok(columns.collect::<Vec<Value>>())
    });
}

/// `item.a.0.b`, as filters' `attribute` has it.
fn at_path(item: &Value, path: &str) -> Result<Value, Error> {
    path.split('.').try_fold(item.clone(), |value, name| match name.parse::<usize>() {
        Ok(index) => value.get_item_by_index(index),
        Err(_) => value.get_attr(name),
    })
}

fn add_tests(env: &mut Environment<'_>) {
    // Jinja asks Python: a string and a mapping have a length and items, too, and a string can be iterated over.
    env.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| {
        value.as_str().is_some() || (!value.is_none() && value.try_iter().is_ok())
    });
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

fn add_globals(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    // It prints the interpreter's whole state, and is no function of Jinja's.
    env.remove_global("debug");
    let b = Arc::clone(budget);
    env.add_function("namespace", move |defaults: Option<ValueOrKwargs>| {
        b.namespace()?;
        functions::namespace(defaults)
    });
    let b = Arc::clone(budget);
    env.add_function("dict", move |value: Option<Value>, kwargs: Kwargs| {
        let pairs = match value {
            Some(value) if value.kind() == ValueKind::Seq => {
                let pair = |pair: &Value| match pair.len() {
                    Some(2) => Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)),
                    _ => Err(wrong("dict: wanted pairs of key and value".to_owned())),
                };
                let pairs: Result<Vec<(Value, Value)>, Error> =
                    elements(&b, &value)?.iter().map(pair).collect();
                Some(Value::from_pairs(pairs?))
            }
            other => other,
        };
        functions::dict(pairs, kwargs)
    });
    env.add_function("cycler", |items: Rest<Value>| {
        if items.is_empty() {
            return Err(wrong("cycler: wanted at least one item".to_owned()));
        }
        Ok(Value::from_object(Cycler { items: items.to_vec(), at: AtomicUsize::new(0) }))
    });
    env.add_function("joiner", |separator: Option<String>| {
        let separator = separator.unwrap_or_else(|| ", ".to_owned());
        Value::from_object(Joiner { separator, used: AtomicBool::new(false) })
    });
}

/// Jinja's `cycler`: `next()` gives the items in turn.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let current = || self.items[self.at.load(Relaxed) % self.items.len()].clone();
        (key.as_str() == Some("current")).then(current)
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "next" => Ok(self.items[self.at.fetch_add(1, Relaxed) % self.items.len()].clone()),
            "reset" => {
                self.at.store(0, Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// Jinja's `joiner`: nothing at its first call, its separator at each later one.
#[derive(Debug)]
struct Joiner {
    separator: String,
    used: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        Ok(if self.used.swap(true, Relaxed) { Value::from(self.separator.as_str()) } else { Value::from("") })
    }
}
