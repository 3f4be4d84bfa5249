//! Values as Python spells them: `str(value)`, `repr(value)` and `format % arguments`.

use minijinja::{
    Error, Value,
    value::{Tuple, ValueKind},
};

use super::{
    environment::as_float,
    json::python_float,
    limits::{Budget, beyond, check_depth, wrong},
};

/// The largest width and precision of a formatting directive.
const MAX_WIDTH: usize = 1000;

/// `str(value)`: text as it is, the rest as [`repr`]; an undefined value is nothing.
///
/// Errors: a bound of `budget` is broken.
pub(super) fn text(value: &Value, budget: &Budget) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, false, budget, 0)?;
    Ok(out)
}

/// `repr(value)`: text in quotes.
///
/// Errors: a bound of `budget` is broken.
pub(super) fn repr(value: &Value, budget: &Budget) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, true, budget, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, quoted: bool, budget: &Budget, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    let before = out.len();
    let items = |out: &mut String| -> Result<usize, Error> {
        let mut count = 0;
        for item in value.try_iter()? {
            if count > 0 {
                out.push_str(", ");
            }
            write(out, &item, true, budget, depth + 1)?;
            count += 1;
        }
        Ok(count)
    };
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match as_float(value) {
            Some(float) => out.push_str(&python_float(float)),
            None => out.push_str(&value.to_string()),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            if quoted { quote(out, text) } else { out.push_str(text) }
        }
        ValueKind::Seq if value.is_tuple() => {
            out.push('(');
            if items(out)? == 1 {
                out.push(',');
            }
            out.push(')');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            items(out)?;
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write(out, &key, true, budget, depth + 1)?;
                out.push_str(": ");
                write(out, &value.get_item(&key)?, true, budget, depth + 1)?;
            }
            out.push('}');
        }
        // Macros, loops and the like: their names, which hold nothing of a template's making.
        _ => out.push_str(&value.to_string()),
    }
    // What a list or a mapping holds was counted there, each with what stands around it.
    let is_leaf = !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
    budget.build(if is_leaf { out.len() - before + 4 } else { 4 })
}

/// A string literal with the quotes that need the fewest escapes, as Python chooses them.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) || c as u32 == 0xad => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c if unprintable(c) => match c as u32 {
                code @ 0..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// Whether Python escapes a character above Latin-1: other blanks than the space, formats, surrogates and private use.
fn unprintable(c: char) -> bool {
    matches!(
        c as u32,
        0x1680 | 0x2000..=0x200f | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000 | 0xe000..=0xf8ff | 0xfeff
            | 0xfff9..=0xfffb | 0xe0000..=0xe0fff | 0xf0000..=0x10ffff | 0xa0
    ) || matches!(c as u32, 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e)
}

/// One directive of a format: `%(name)-05.2f`.
#[derive(Debug, Default)]
struct Directive {
    name: Option<String>,
    left: bool,
    zero: bool,
    sign: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// `format % arguments`, as Python's strings have it: a tuple gives several arguments, a mapping named ones.
///
/// Errors: too few or too many arguments, one of the wrong type, an unknown directive; a bound of `budget` is broken.
pub(super) fn percent(format: &str, arguments: &Value, budget: &Budget) -> Result<String, Error> {
    let several: Vec<Value> = match arguments.downcast_object_ref::<Tuple>() {
        Some(tuple) => tuple.to_vec(),
        None => vec![arguments.clone()],
    };
    let mut next = 0;
    let mut named = arguments.kind() == ValueKind::Map;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = Directive::default();
        if chars.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some(c) => name.push(c),
                    None => return Err(wrong("incomplete format key".to_owned())),
                }
            }
            directive.name = Some(name);
        }
        loop {
            match chars.peek() {
                Some('-') => directive.left = true,
                Some('0') => directive.zero = true,
                Some('+') => directive.sign = true,
                Some(' ') => directive.space = true,
                Some('#') => directive.alternate = true,
                _ => break,
            }
            chars.next();
        }
        let mut take = |directive: &Directive| -> Result<Value, Error> {
            match &directive.name {
                Some(name) => {
                    named = true;
                    arguments
                        .get_item(&Value::from(name.as_str()))
                        .ok()
                        .filter(|v| !v.is_undefined())
                        .ok_or_else(|| wrong(format!("the format wants {name:?}, which is not given")))
                }
                None => {
                    let value = several.get(next).cloned();
                    next += 1;
                    value.ok_or_else(|| wrong("not enough arguments for format string"))
                }
            }
        };
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
                      take: &mut dyn FnMut(&Directive) -> Result<Value, Error>|
         -> Result<(usize, bool), Error> {
            let mut negative = false;
            let value = if chars.next_if_eq(&'*').is_some() {
                let given = i64::try_from(take(&Directive::default())?)?;
                negative = given < 0;
                usize::try_from(given.unsigned_abs()).unwrap_or(usize::MAX)
            } else {
                let mut value = 0_usize;
                while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                    value = value.saturating_mul(10).saturating_add(digit as usize);
                    chars.next();
                }
                value
            };
            if value > MAX_WIDTH {
                return Err(beyond(format!("a width of {value} in a format, at most {MAX_WIDTH}")));
            }
            Ok((value, negative))
        };
        let (width, negative) = number(&mut chars, &mut take)?;
        directive.width = width;
        directive.left |= negative;
        if chars.next_if_eq(&'.').is_some() {
            directive.precision = Some(number(&mut chars, &mut take)?.0);
        }
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        let Some(kind) = chars.next() else { return Err(wrong("incomplete format".to_owned())) };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = take(&directive)?;
        let piece = converted(kind, &value, &directive, budget)?;
        budget.build(piece.len())?;
        out.push_str(&piece);
    }
    if next < several.len() && !named {
        return Err(wrong("not all arguments converted during string formatting".to_owned()));
    }
    budget.build(out.len())?;
    Ok(out)
}

fn converted(kind: char, value: &Value, directive: &Directive, budget: &Budget) -> Result<String, Error> {
    let wanted = |what: &str| wrong(format!("%{kind} format: found a {}, wanted {what}", value.kind()));
    let is_number = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let integer = || -> Result<i128, Error> {
        match as_float(value) {
            Some(float) => Ok(float.trunc() as i128),
            None if is_number => i128::try_from(value.clone()),
            None => Err(wanted("a number")),
        }
    };
    let float = || -> Result<f64, Error> {
        if is_number { f64::try_from(value.clone()) } else { Err(wanted("a number")) }
    };
    let (negative, digits) = match kind {
        's' | 'r' | 'a' => {
            let text = if kind == 's' { text(value, budget)? } else { repr(value, budget)? };
            let text = match directive.precision {
                Some(most) => text.chars().take(most).collect(),
                None => text,
            };
            return Ok(padded("", &text, directive, false));
        }
        'c' => {
            let text = match value.as_str() {
                Some(text) if text.chars().count() == 1 => text.to_owned(),
                Some(_) => return Err(wanted("one character")),
                None => u32::try_from(integer()?)
                    .ok()
                    .and_then(char::from_u32)
                    .ok_or_else(|| wanted("a character's number"))?
                    .to_string(),
            };
            return Ok(padded("", &text, directive, false));
        }
        'd' | 'i' | 'u' => {
            let value = integer()?;
            (value < 0, value.unsigned_abs().to_string())
        }
        'x' | 'X' | 'o' => {
            if as_float(value).is_some() {
                return Err(wanted("an integer"));
            }
            let value = integer()?;
            let magnitude = value.unsigned_abs();
            let (prefix, digits) = match kind {
                'x' => ("0x", format!("{magnitude:x}")),
                'X' => ("0X", format!("{magnitude:X}")),
                _ => ("0o", format!("{magnitude:o}")),
            };
            (value < 0, if directive.alternate { format!("{prefix}{digits}") } else { digits })
        }
        'f' | 'F' => {
            let value = float()?;
            (value.is_sign_negative(), format!("{:.*}", directive.precision.unwrap_or(6), value.abs()))
        }
        'e' | 'E' => {
            let value = float()?;
            let text = exponential(value.abs(), directive.precision.unwrap_or(6));
            (value.is_sign_negative(), if kind == 'E' { text.to_uppercase() } else { text })
        }
        'g' | 'G' => {
            let value = float()?;
            let text = general(value.abs(), directive.precision.unwrap_or(6).max(1));
            (value.is_sign_negative(), if kind == 'G' { text.to_uppercase() } else { text })
        }
        other => {
            return Err(wrong(format!("unsupported format character {other:?}")));
        }
    };
    let digits = match (kind, directive.precision) {
        ('d' | 'i' | 'u', Some(least)) if digits.len() < least => {
            format!("{}{digits}", "0".repeat(least - digits.len()))
        }
        _ => digits,
    };
    let sign = match (negative, directive.sign, directive.space) {
        (true, ..) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        (false, false, false) => "",
    };
    Ok(padded(sign, &digits, directive, true))
}

fn padded(sign: &str, text: &str, directive: &Directive, number: bool) -> String {
    let missing = directive.width.saturating_sub(sign.len() + text.chars().count());
    match (directive.left, directive.zero && number) {
        (true, _) => format!("{sign}{text}{}", " ".repeat(missing)),
        (false, true) => format!("{sign}{}{text}", "0".repeat(missing)),
        (false, false) => format!("{}{sign}{text}", " ".repeat(missing)),
    }
}

/// `1.5e+03`: an exponent with its sign and two digits at least.
fn exponential(value: f64, precision: usize) -> String {
    if !value.is_finite() {
        return python_float(value);
    }
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// The shorter of both notations with `digits` significant digits, without trailing zeros.
fn general(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return python_float(value);
    }
    let scientific = exponential(value, digits - 1);
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let without_zeros = |text: &str| -> String {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    if exponent < -4 || exponent >= i32::try_from(digits).unwrap_or(i32::MAX) {
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
        return format!("{}e{exponent}", without_zeros(mantissa));
    }
    let decimals = usize::try_from(i32::try_from(digits).unwrap_or(i32::MAX) - 1 - exponent).unwrap_or(0);
    without_zeros(&format!("{value:.decimals$}"))
}
