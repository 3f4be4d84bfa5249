//! Text from files as it is shown: on one line, and with nothing in it that would steer a terminal.
//!
//! Names, metadata and messages come from strangers' files: printed as they are, they could clear the screen, write lines
//! of their own or turn the order of letters round. Everything that is no generated text goes through here before it is
//! shown: control characters, line ends and the characters that set the direction of writing appear as Rust's escapes.

use std::fmt::{self, Display, Write};

/// Whether a character is shown as an escape: C0 (line ends and tabs among them), DEL, C1, the separators of lines and
/// paragraphs, and what sets the direction of writing.
#[must_use]
pub fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A value whose text is shown escaped. See [`shown`].
#[derive(Debug, Clone, Copy)]
pub struct Shown<T>(T);

/// Shows a value's text on one line, with escapes (`\n`, `\u{1b}`) for what would steer a terminal.
pub fn shown<T: Display>(value: T) -> Shown<T> {
    Shown(value)
}

/// Shows a file's path.
pub fn shown_path(path: &std::path::Path) -> Shown<std::path::Display<'_>> {
    Shown(path.display())
}

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_none() && f.precision().is_none() {
            return write!(Escaping { out: f, keep: &[] }, "{}", self.0);
        }
        let mut text = String::new();
        write!(Escaping { out: &mut text, keep: &[] }, "{}", self.0)?;
        f.pad(&text)
    }
}

/// A text of several lines: as [`shown`], but line ends stay. The names in it are to be [`shown`] already.
#[must_use]
pub fn shown_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let _ = Escaping { out: &mut out, keep: &['\n'] }.write_str(text);
    out
}

/// Several names, each [`shown`], with commas between.
pub fn shown_list<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| shown(name.as_ref()).to_string()).collect();
    names.join(", ")
}

/// Bytes that are not all UTF-8: text as [`shown`] with backslashes doubled, the other bytes as `\xE9`.
#[must_use]
pub fn shown_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let _ = write!(out, "{}", shown(chunk.valid().replace('\\', "\\\\")));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02X}");
        }
    }
    out
}

/// JSON in which what would steer a terminal is escaped, as JSON does it: `\u001b`. Outside of strings JSON has no such
/// characters but line ends, which stay.
#[must_use]
pub fn shown_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_steering(c) && c != '\n' {
            let _ = write!(out, "\\u{:04x}", u32::from(c)); // all of them are of the basic plane
        } else {
            out.push(c);
        }
    }
    out
}

/// Writes on, escaping what steers but is not to be kept.
struct Escaping<'a, W: ?Sized> {
    out: &'a mut W,
    keep: &'a [char],
}

impl<W: Write + ?Sized> Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_steering(*c) && !self.keep.contains(c))
        {
            self.out.write_str(&rest[..at])?;
            write!(self.out, "{}", c.escape_default())?;
            rest = &rest[at + c.len_utf8()..];
        }
        self.out.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_escaped_and_the_rest_is_left() {
        let evil = "evil\u{1b}[2J\nok: all is well\r\t\u{7f}\u{9b}\u{202e}\u{2028}é日 👩\u{200d}🔬\\";
        let wanted =
            "evil\\u{1b}[2J\\nok: all is well\\r\\t\\u{7f}\\u{9b}\\u{202e}\\u{2028}é日 👩\u{200d}🔬\\";
        assert_eq!(shown(evil).to_string(), wanted);
        assert_eq!(format!("[{:4}|{:>4}]", shown("\n"), shown("a")), "[\\n  |   a]");
        assert_eq!(shown_lines("a\u{1b}\nb\r"), "a\\u{1b}\nb\\r");
        assert_eq!(shown_list(["a\n", "b"]), "a\\n, b");
        assert_eq!(shown_bytes(b"caf\xe9 \\ \xc3\xa9\n\xff"), "caf\\xE9 \\\\ é\\n\\xFF");
        assert_eq!(shown_json("{\n \"a\": \"\u{9b}\u{202e}é\"}"), "{\n \"a\": \"\\u009b\\u202eé\"}");
    }
}
