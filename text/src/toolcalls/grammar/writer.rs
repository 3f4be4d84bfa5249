//! The text of a grammar in llguidance's dialect of Lark, while it is written.

use std::collections::HashMap;

use serde_json::Value;

use crate::constraint::with_options;

/// Rules, and what was noted about them.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Lines of rules.
    pub rules: String,
    /// Arguments whose text is free although their schema asks for more.
    pub free: Vec<String>,
    count: usize,
    /// Rules of free texts, by what ends them.
    texts: HashMap<String, String>,
}

impl Writer {
    /// A rule of its own; gives its name.
    pub fn rule(&mut self, body: &str) -> String {
        let name = self.name();
        let body = if body.is_empty() { "\"\"" } else { body };
        self.rules.push_str(&format!("{name}: {body}\n"));
        name
    }

    /// Any text up to what ends it, which is passed.
    pub fn text(&mut self, end: &str) -> String {
        if let Some(name) = self.texts.get(end) {
            return name.clone();
        }
        let name = self.name();
        self.rules.push_str(&format!("{name}[suffix={}]: /(?s:.*)/\n", literal(end)));
        self.texts.insert(end.to_owned(), name.clone());
        name
    }

    /// JSON that a schema describes.
    pub fn json(&mut self, schema: &Value) -> String {
        self.rule(&format!("%json {}", with_options(schema)))
    }

    /// Items in their order, some of which may be missing, with something between them.
    pub fn list(&mut self, items: &[(String, bool)], between: &str) -> String {
        // What may follow an item, and what may stand where none came yet.
        let (mut follows, mut begins) = (String::new(), String::new());
        for (item, is_required) in items.iter().rev() {
            let with_between = sequence(&[&literal(between), item]);
            let first = sequence(&[item, &follows]);
            (begins, follows) = match is_required {
                true => (first, sequence(&[&with_between, &follows])),
                false => {
                    let others = if begins.is_empty() { "\"\"" } else { &begins };
                    (format!("{first} | {others}"), sequence(&[&format!("({with_between})?"), &follows]))
                }
            };
            begins = self.rule(&begins);
            follows = self.rule(&follows);
        }
        begins
    }

    fn name(&mut self) -> String {
        self.count += 1;
        format!("r{}", self.count)
    }
}

/// A text as the grammar writes it; nothing for none.
pub(super) fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string().replace('\x7F', "\\u007f") }
}

/// One behind the other, without those that are nothing.
pub(super) fn sequence(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ")
}
