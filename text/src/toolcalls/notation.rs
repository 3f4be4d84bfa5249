//! Values as models write them, in JSON, in Python's literals, in Gemma's notation → JSON text.
//!
//! One scanner without recursion; nesting is bounded. Strings and numbers of JSON are passed on as they stand, blanks between
//! values are not.

use super::{
    output::Output,
    reader::{Reader, Stop},
};

/// How deeply a value may be nested: less than what JSON readers commonly take.
pub(super) const MAX_DEPTH: usize = 100;
/// Bytes of a number or a word.
const MAX_SCALAR: usize = 4096;
/// What stands around Gemma's strings.
pub(super) const GEMMA_QUOTE: &str = "<|\"|>";

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Notation {
    /// JSON, strictly.
    Json,
    /// Python's literals, and JSON's.
    Python,
    /// Bare keys, strings between `<|"|>`.
    Gemma,
}

/// Where JSON text goes.
pub(super) enum Sink<'a> {
    /// Into a text.
    Text(&'a mut String),
    /// To the open call.
    Call(&'a Output),
    /// Nowhere.
    Nothing,
}

impl Sink<'_> {
    fn push(&mut self, text: &str) {
        match self {
            Sink::Text(all) => all.push_str(text),
            Sink::Call(output) => output.arguments(text),
            Sink::Nothing => {}
        }
    }

    fn push_char(&mut self, c: char) {
        self.push(c.encode_utf8(&mut [0; 4]));
    }
}

/// One value, blanks in front of it included.
///
/// Errors: there is none in this notation, it is nested too deeply, or the text ends inside of it.
pub(super) async fn value(reader: &Reader, notation: Notation, sink: &mut Sink<'_>) -> Result<(), Stop> {
    // Whether each open value is an object.
    let mut open: Vec<bool> = Vec::new();
    'values: loop {
        reader.blanks().await;
        let c = reader.peek().await.ok_or(Stop::End)?;
        match c {
            '{' | '[' => {
                if open.len() >= MAX_DEPTH {
                    return Err(Stop::Not);
                }
                sink.push_char(reader.next().await?);
                open.push(c == '{');
                reader.blanks().await;
                let close = if c == '{' { '}' } else { ']' };
                if reader.peek().await != Some(close) {
                    if c == '{' {
                        key(reader, notation, sink).await?;
                    }
                    continue 'values;
                }
            }
            _ if is_quote(reader, notation, c).await => {
                let text = string(reader, notation, sink).await?;
                sink.push(&text);
            }
            _ => sink.push(&scalar(reader, notation).await?),
        }
        // Behind a value: what ends, and whether another one follows.
        while let Some(&is_object) = open.last() {
            reader.blanks().await;
            match (reader.next().await?, is_object) {
                ('}', true) => sink.push("}"),
                (']', false) => sink.push("]"),
                (',', _) => {
                    reader.blanks().await;
                    let close = if is_object { '}' } else { ']' };
                    if notation != Notation::Json && reader.peek().await == Some(close) {
                        continue;
                    }
                    sink.push(", ");
                    if is_object {
                        key(reader, notation, sink).await?;
                    }
                    continue 'values;
                }
                _ => return Err(Stop::Not),
            }
            open.pop();
        }
        return Ok(());
    }
}

/// An object's key and its colon.
async fn key(reader: &Reader, notation: Notation, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let c = reader.peek().await.ok_or(Stop::End)?;
    if is_quote(reader, notation, c).await {
        let text = string(reader, notation, sink).await?;
        sink.push(&text);
    } else if notation == Notation::Gemma {
        let mut text = String::new();
        while reader.peek().await.is_none_or(|c| c != ':') {
            match reader.next().await? {
                '<' | '{' | '}' | '[' | ']' | ',' | '\n' => return Err(Stop::Not),
                _ if text.len() > MAX_SCALAR => return Err(Stop::Not),
                c => text.push(c),
            }
        }
        sink.push(&quoted(text.trim()));
    } else {
        return Err(Stop::Not);
    }
    reader.blanks().await;
    reader.expect(":").await?;
    sink.push(": ");
    Ok(())
}

async fn is_quote(reader: &Reader, notation: Notation, c: char) -> bool {
    match (notation, c) {
        (_, '"') => true,
        (Notation::Python, '\'') => true,
        (Notation::Gemma, '<') => reader.ahead(GEMMA_QUOTE).await != super::reader::Ahead::Other,
        _ => false,
    }
}

/// A string: what the sink lacks of it. JSON's own goes to the sink as it comes.
async fn string(reader: &Reader, notation: Notation, sink: &mut Sink<'_>) -> Result<String, Stop> {
    match (notation, reader.peek().await) {
        (Notation::Gemma, Some('<')) => {
            reader.expect(GEMMA_QUOTE).await?;
            let mut text = String::new();
            reader.until(&[GEMMA_QUOTE], |more| text.push_str(more)).await.ok_or(Stop::End)?;
            reader.skip(GEMMA_QUOTE.len());
            Ok(quoted(&text))
        }
        (Notation::Python, _) => Ok(quoted(&python_string(reader).await?)),
        _ => {
            json_string(reader, sink).await?;
            Ok(String::new())
        }
    }
}

/// A string of JSON, as it stands.
///
/// Errors: it is none, or the text ends inside of it.
async fn json_string(reader: &Reader, sink: &mut Sink<'_>) -> Result<(), Stop> {
    reader.expect("\"").await?;
    sink.push("\"");
    loop {
        let c = reader.next().await?;
        match c {
            '\0'..='\x1F' => return Err(Stop::Not),
            '\\' => {
                let escaped = reader.next().await?;
                if !"\"\\/bfnrtu".contains(escaped) {
                    return Err(Stop::Not);
                }
                match escaped {
                    'u' => unicode_escape(reader, sink).await?,
                    _ => sink.push(&format!("\\{escaped}")),
                }
            }
            _ => sink.push_char(c),
        }
        if c == '"' {
            return Ok(());
        }
    }
}

/// What stands behind `\u`, and the other half of a pair of surrogates. A half alone, which strict readers of JSON refuse, is
/// U+FFFD.
async fn unicode_escape(reader: &Reader, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let mut code = hexadecimal(reader, 4).await?;
    while (0xD800..0xDC00).contains(&code) && reader.take("\\u").await? {
        let second = hexadecimal(reader, 4).await?;
        if (0xDC00..0xE000).contains(&second) {
            sink.push(&format!("\\u{code:04x}\\u{second:04x}"));
            return Ok(());
        }
        sink.push("\\ufffd");
        code = second;
    }
    let code = if (0xD800..0xE000).contains(&code) { 0xFFFD } else { code };
    sink.push(&format!("\\u{code:04x}"));
    Ok(())
}

/// The text of a string of JSON.
///
/// Errors: as for [`value`].
pub(super) async fn json_text(reader: &Reader) -> Result<String, Stop> {
    let mut raw = String::new();
    json_string(reader, &mut Sink::Text(&mut raw)).await?;
    serde_json::from_str(&raw).map_err(|_| Stop::Not)
}

/// The text of a string of Python. A quote inside of it that is not escaped is told from its end by what follows.
async fn python_string(reader: &Reader) -> Result<String, Stop> {
    let quote = reader.next().await?;
    let mut text = String::new();
    // The first half of a surrogate pair.
    let mut high: Option<u32> = None;
    loop {
        let c = reader.next().await?;
        let before = text.len();
        match c {
            '\\' => {
                let escaped = reader.next().await?;
                let digits = match escaped {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                if digits > 0 {
                    let code = hexadecimal(reader, digits).await?;
                    let pair = high.filter(|_| (0xDC00..0xE000).contains(&code));
                    let code = pair.map_or(code, |high| 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00));
                    high = (0xD800..0xDC00).contains(&code).then_some(code);
                    if high.is_none() {
                        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    continue;
                }
                match escaped {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    'v' => text.push('\u{b}'),
                    'a' => text.push('\u{7}'),
                    '0' => text.push('\0'),
                    '\n' => {}
                    '\\' | '\'' | '"' => text.push(escaped),
                    other => text.extend(['\\', other]),
                }
            }
            _ if c == quote && ends_string(reader).await => {
                if high.is_some() {
                    text.push(char::REPLACEMENT_CHARACTER);
                }
                return Ok(text);
            }
            _ => text.push(c),
        }
        if high.take().is_some() {
            text.insert(before, char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Whether what stands behind a quote can stand behind a string.
async fn ends_string(reader: &Reader) -> bool {
    reader.hold();
    reader.blanks().await;
    let next = reader.peek().await;
    reader.release(true);
    next.is_none_or(|c| ",:)]}".contains(c))
}

async fn hexadecimal(reader: &Reader, digits: usize) -> Result<u32, Stop> {
    let mut code = 0_u32;
    for _ in 0..digits {
        let digit = reader.next().await?.to_digit(16).ok_or(Stop::Not)?;
        code = code.checked_mul(16).and_then(|code| code.checked_add(digit)).ok_or(Stop::Not)?;
    }
    Ok(code)
}

/// A number, a truth value or null.
async fn scalar(reader: &Reader, notation: Notation) -> Result<String, Stop> {
    let mut text = String::new();
    while let Some(c) = reader.peek().await.filter(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c)) {
        if text.len() >= MAX_SCALAR {
            return Err(Stop::Not);
        }
        text.push(c);
        reader.next().await?;
    }
    if text.is_empty() && reader.peek().await.is_none() {
        return Err(Stop::End);
    }
    match text.as_str() {
        "true" | "false" | "null" => Ok(text),
        "True" if notation != Notation::Json => Ok("true".to_owned()),
        "False" if notation != Notation::Json => Ok("false".to_owned()),
        "None" if notation != Notation::Json => Ok("null".to_owned()),
        number if is_number(number) => Ok(text),
        // A word that the end cut off is no broken one.
        _ if reader.peek().await.is_none() => Err(Stop::End),
        _ => Err(Stop::Not),
    }
}

/// Whether a text is a number of JSON.
pub(super) fn is_number(text: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = text.strip_prefix('-').unwrap_or(text);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest.starts_with('0')) {
        return false;
    }
    let mut rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

/// A text as a string of JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
