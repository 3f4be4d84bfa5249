//! Which characters of a rendered prompt the template wrote, and which come from messages.
//!
//! A message may say `<|im_end|>`; in the prompt that must stay text, while the same characters from the template are the
//! control token. So the prompt is rendered twice. The first rendering gives the text. For the second, the characters of
//! control tokens inside the input's strings are replaced by stand-ins, characters that occur nowhere else; what still reads
//! `<|im_end|>` afterwards was written by the template. The second rendering counts only if putting the original
//! characters back gives the first one, character by character: then the stand-ins have changed nothing, and each
//! character's origin is known. If the template acts on a replaced character (it may look for `</think>` in a message), the
//! renderings differ, and only delimiters (the `|` of `<|im_end|>`) are replaced: then the template wrote at least those of
//! every control token that is left. If the renderings still differ, rendering fails: nothing is guessed.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::{ChatError, ChatInput};

/// A rendered prompt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rendered {
    text: String,
    /// The text with stand-ins; character by character as long as `text`.
    marked: String,
    /// Stand-in → what it stands for.
    originals: BTreeMap<char, char>,
}

impl Rendered {
    /// The prompt.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The prompt with stand-ins for characters of messages: a control token that can be read here is the template's.
    pub(crate) fn marked(&self) -> &str {
        &self.marked
    }

    /// A part of the marked text with the original characters.
    pub(crate) fn unmark(&self, marked: &str) -> String {
        marked.chars().map(|c| self.originals.get(&c).copied().unwrap_or(c)).collect()
    }
}

/// How much is replaced in the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extent {
    /// In texts, every character that some control token holds, letters included; in roles and keys, delimiters. No
    /// control token can be put together from pieces of template and message.
    EveryCharacter,
    /// Everywhere only [`delimiters`], at least one in each control token: templates rarely look at those.
    Delimiters,
}

/// Tells the template's characters from the input's. `text` is the rendering of `input`, `render` renders another input.
///
/// Errors: the template acts on characters of control tokens in the input.
pub fn separate(
    text: String,
    input: &ChatInput,
    control_texts: &[&str],
    render: impl Fn(&ChatInput) -> Result<String, ChatError>,
) -> Result<Rendered, ChatError> {
    if !control_texts.iter().any(|control| text.contains(control)) {
        // Nothing to be told apart.
        return Ok(Rendered { marked: text.clone(), text, originals: BTreeMap::new() });
    }
    for extent in [Extent::EveryCharacter, Extent::Delimiters] {
        let marker = Marker::new(extent, control_texts, &text, input);
        // A template that fails on the marked input acts on what was replaced, as one that renders it differently does.
        let Ok(marked) = render(&marker.input(input)) else { continue };
        let rendered = Rendered { marked, text: String::new(), originals: marker.originals() };
        if rendered.unmark(&rendered.marked) == text {
            return Ok(Rendered { text, ..rendered });
        }
    }
    Err(ChatError::Entangled)
}

/// A set of characters, at least one of each control text: punctuation, for templates act on letters and tags far more often
/// than on it. `|` alone serves where every token looks like `<|this|>`. Texts without punctuation have none in the set.
fn delimiters(control_texts: &[&str]) -> HashSet<char> {
    let is_delimiter = |c: &char| !c.is_alphanumeric() && !c.is_whitespace() && !matches!(c, '_' | '-');
    let mut chosen = HashSet::new();
    let mut open: Vec<&str> =
        control_texts.iter().copied().filter(|text| text.chars().any(|c| is_delimiter(&c))).collect();
    while !open.is_empty() {
        let mut counts: BTreeMap<char, usize> = BTreeMap::new();
        for text in &open {
            for c in text.chars().filter(is_delimiter).collect::<HashSet<char>>() {
                *counts.entry(c).or_default() += 1;
            }
        }
        let rank = |&(c, count): &(&char, &usize)| (*count, !"<>/[]{}".contains(*c), std::cmp::Reverse(*c));
        let Some((&best, _)) = counts.iter().max_by_key(rank) else { break };
        chosen.insert(best);
        open.retain(|text| !text.contains(best));
    }
    chosen
}

/// Replaces characters in the strings of an input.
struct Marker<'a> {
    /// Replaced in texts: character → stand-in.
    in_texts: HashMap<char, char>,
    /// Replaced in roles and keys.
    in_names: HashMap<char, char>,
    /// Control texts without a delimiter: where one is spelled out in a string, all of it is replaced.
    bare_words: Vec<&'a str>,
    stand_ins: HashMap<char, char>,
}

impl<'a> Marker<'a> {
    fn new(extent: Extent, control_texts: &[&'a str], text: &str, input: &ChatInput) -> Marker<'a> {
        let delimiters = delimiters(control_texts);
        let bare_words: Vec<&str> = control_texts
            .iter()
            .copied()
            .filter(|text| !text.is_empty() && !text.contains(|c| delimiters.contains(&c)))
            .collect();
        let mut all: Vec<char> =
            control_texts.iter().flat_map(|text| text.chars()).filter(|c| !c.is_whitespace()).collect();
        all.sort_unstable();
        all.dedup();

        let mut used: HashSet<char> = text.chars().collect();
        visit_strings(&input.messages, &mut |s| used.extend(s.chars()));
        input.tools.iter().for_each(|tools| visit_strings(tools, &mut |s| used.extend(s.chars())));
        input.extra.iter().for_each(|(key, value)| {
            used.extend(key.chars());
            visit_strings(value, &mut |s| used.extend(s.chars()));
        });
        // The private-use planes: no letters, no blanks, untouched by a change of case.
        let free =
            ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}').filter(|c| !used.contains(c));
        let stand_ins: HashMap<char, char> = all.into_iter().zip(free).collect();

        let only_delimiters: HashMap<char, char> =
            stand_ins.iter().filter(|(c, _)| delimiters.contains(c)).map(|(&c, &s)| (c, s)).collect();
        let in_texts = match extent {
            Extent::EveryCharacter => stand_ins.clone(),
            Extent::Delimiters => only_delimiters.clone(),
        };
        Marker { in_texts, in_names: only_delimiters, bare_words, stand_ins }
    }

    fn originals(&self) -> BTreeMap<char, char> {
        self.stand_ins.iter().map(|(&c, &stand_in)| (stand_in, c)).collect()
    }

    fn input(&self, input: &ChatInput) -> ChatInput {
        let messages = match &input.messages {
            Value::Array(messages) => messages.iter().map(|message| self.message(message)).collect(),
            other => self.value(other),
        };
        let extra = input
            .extra
            .iter()
            .map(|(key, value)| {
                // bos_token and its like are the caller's, not a message's: they are meant as control tokens.
                let value = if key.ends_with("_token") { value.clone() } else { self.value(value) };
                (key.clone(), value)
            })
            .collect();
        ChatInput {
            messages,
            tools: input.tools.as_ref().map(|tools| self.value(tools)),
            add_generation_prompt: input.add_generation_prompt,
            extra,
        }
    }

    /// A message: its role is a name that templates compare and may build a control token from (`<|user|>`).
    fn message(&self, message: &Value) -> Value {
        let Value::Object(fields) = message else { return self.value(message) };
        let field = |(key, value): (&String, &Value)| {
            let value = match value {
                Value::String(role) if key == "role" => Value::String(self.replace(role, &self.in_names)),
                other => self.value(other),
            };
            (self.replace(key, &self.in_names), value)
        };
        Value::Object(fields.iter().map(field).collect())
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.replace(text, &self.in_texts)),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, value)| (self.replace(key, &self.in_names), self.value(value)))
                    .collect::<Map<String, Value>>(),
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn replace(&self, text: &str, characters: &HashMap<char, char>) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            match self.bare_words.iter().find(|word| rest.starts_with(**word)) {
                Some(word) => {
                    out.extend(word.chars().map(|c| self.stand_ins.get(&c).copied().unwrap_or(c)));
                    rest = &rest[word.len()..];
                }
                None => {
                    out.push(characters.get(&c).copied().unwrap_or(c));
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        out
    }
}

/// Bytes of all strings and keys of a value.
pub(super) fn size(value: &Value) -> usize {
    let mut bytes = 0;
    visit_strings(value, &mut |text| bytes += text.len());
    bytes
}

/// Calls `visit` with every string and key of a value.
fn visit_strings(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| visit_strings(item, visit)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            visit(key);
            visit_strings(value, visit);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_of_every_control_text() {
        let set = |texts: &[&str]| {
            let mut set: Vec<char> = delimiters(texts).into_iter().collect();
            set.sort_unstable();
            set
        };
        assert_eq!(set(&["<|im_end|>", "<|im_start|>", "<|endoftext|>"]), ['|']);
        assert_eq!(set(&["<|a|>", "[INST]"]), ['[', '|']);
        assert_eq!(set(&["<｜end▁of▁sentence｜>", "<|x|>", "PAD"]).len(), 1);
    }
}
