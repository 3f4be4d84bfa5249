//! What Python's methods of strings compute, on Rust's strings. Positions and widths are characters.

use minijinja::Error;

use super::limits::Budget;

/// The part of a text between two positions in characters, which may be negative or absent, and where it starts; `None`
/// where the range is empty since it starts behind the end.
pub(super) fn part(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, String)> {
    let len = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let placed = |at: i64| if at < 0 { (at + len).max(0) } else { at };
    let (start, end) = (start.map_or(0, placed), end.map_or(len, placed).min(len));
    if start > end || start > len {
        return None;
    }
    let start = usize::try_from(start).unwrap_or(0);
    let taken = usize::try_from(end).unwrap_or(0).saturating_sub(start);
    Some((start, text.chars().skip(start).take(taken).collect()))
}

pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.split` and `str.rsplit`: words between blanks where there is no separator.
pub(super) fn split(text: &str, separator: Option<&str>, most: Option<i64>, from_right: bool) -> Vec<String> {
    let most = most.and_then(|most| usize::try_from(most).ok());
    let mut parts: Vec<String> = Vec::new();
    match (separator, from_right) {
        (Some(separator), false) => match most {
            Some(most) => parts.extend(text.splitn(most + 1, separator).map(str::to_owned)),
            None => parts.extend(text.split(separator).map(str::to_owned)),
        },
        (Some(separator), true) => {
            match most {
                Some(most) => parts.extend(text.rsplitn(most + 1, separator).map(str::to_owned)),
                None => parts.extend(text.rsplit(separator).map(str::to_owned)),
            }
            parts.reverse();
        }
        (None, false) => {
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                if most.is_some_and(|most| parts.len() >= most) {
                    parts.push(rest.trim_end_matches(is_space).to_owned());
                    if rest.ends_with(is_space) {
                        // Python keeps what follows the last split as it is.
                        parts.pop();
                        parts.push(rest.to_owned());
                    }
                    break;
                }
                let end = rest.find(is_space).unwrap_or(rest.len());
                parts.push(rest[..end].to_owned());
                rest = rest[end..].trim_start_matches(is_space);
            }
        }
        (None, true) => {
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                if most.is_some_and(|most| parts.len() >= most) {
                    parts.push(rest.to_owned());
                    break;
                }
                let word = rest
                    .char_indices()
                    .rev()
                    .find(|&(_, c)| is_space(c))
                    .map_or(0, |(i, c)| i + c.len_utf8());
                parts.push(rest[word..].to_owned());
                rest = rest[..word].trim_end_matches(is_space);
            }
            parts.reverse();
        }
    }
    parts
}

/// `str.splitlines`: at every line end that Unicode has.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let end = rest[at..].chars().next().map_or(0, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { end };
        lines.push(rest[..if keep_ends { end } else { at }].to_owned());
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect(),
        None => String::new(),
    }
}

/// Each run of letters with a capital first.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

pub(super) fn is_title(text: &str) -> bool {
    let (mut in_word, mut some) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() {
            if in_word {
                return false;
            }
            (in_word, some) = (true, true);
        } else if c.is_lowercase() {
            if !in_word {
                return false;
            }
            some = true;
        } else {
            in_word = false;
        }
    }
    some
}

/// `text` in the middle of `width` characters; an odd blank goes to the left where the width is odd, as in Python.
pub(super) fn centered(text: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    let run = |n: usize| fill.to_string().repeat(n);
    format!("{}{text}{}", run(left), run(missing - left))
}

pub(super) fn expanded_tabs(text: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let blanks = size - column % size;
                out.push_str(&" ".repeat(blanks));
                column += blanks;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

/// A digit 0 to 9 of some script: Unicode's category Nd, of which each has a block of ten.
pub(super) fn is_decimal(c: char) -> bool {
    const ZEROS: &[u32] = &[
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0,
        0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x1d7ce, 0x1d7d8,
        0x1d7e2, 0x1d7ec, 0x1d7f6,
    ];
    ZEROS.iter().any(|&zero| (zero..zero + 10).contains(&(c as u32)))
}

/// A digit that is not part of a decimal number: raised, lowered, in a circle.
pub(super) fn is_digit_sign(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐' | '❶'..='❾' | '➀'..='➈' | '➊'..='➒')
}

/// `text` with `new` in place of each `old`, of the first `most` where that is not negative.
///
/// Errors: the result is too large.
pub(super) fn replaced(
    budget: &Budget,
    text: &str,
    old: &str,
    new: &str,
    most: Option<i64>,
) -> Result<String, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    budget.build(found.min(most).saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(text.replacen(old, new, most))
}
