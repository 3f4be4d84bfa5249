//! Qwen3-Coder, Qwen3.5, Nemotron-3, Step-3.5: `<tool_call>`, `<function=NAME>`, `<parameter=KEY>` value `</parameter>`.
//!
//! One line end behind the opening tag and one in front of the closing tag are no part of a value. `<tool_call>` is sometimes
//! missing. Values have no quotes; truth values and null are Python's. Arguments with one tag a value share [`Arguments`].

use super::{Stop, Work, json_call, notation};

const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const END: &str = "</function>";

pub(super) async fn read(work: &Work, opener: usize, tag: &str) -> Result<(), Stop> {
    let Work { reader, .. } = work;
    // The first opener is what stands around functions.
    let close = work.syntax.openers.first().map_or_else(String::new, |around| around.replacen('<', "</", 1));
    if opener == 0 {
        reader.expect(tag).await?;
        reader.blanks().await;
        if reader.peek().await == Some('{') {
            return json_call::behind(work, Some(&close)).await;
        }
    }
    reader.expect(FUNCTION).await?;
    loop {
        let name = reader.line_until(">").await?;
        let mut arguments = Arguments::begin(work, name.trim());
        reader.blanks().await;
        while reader.take(PARAMETER).await? {
            let key = reader.line_until(">").await?;
            let value = value(work, "</parameter>", &[PARAMETER, END]).await?;
            let schema = work.schema(name.trim()).property(key.trim());
            arguments.add(key.trim(), &schema.value(without_line_ends(&value), true));
        }
        reader.expect(END).await?;
        arguments.end();
        work.finish_call();
        if !work.trailing(FUNCTION).await {
            break;
        }
    }
    work.trailing(&close).await;
    Ok(())
}

/// A value up to its closing tag, which is passed, and blanks behind it. The tag may be part of a value: it closes one where one of
/// `next` follows.
///
/// Errors: the text ends before.
pub(super) async fn value(work: &Work, close: &str, next: &[&str]) -> Result<String, Stop> {
    let reader = &work.reader;
    let mut value = String::new();
    loop {
        reader.until(&[close], |more| value.push_str(more)).await.ok_or(Stop::End)?;
        reader.skip(close.len());
        reader.hold();
        reader.blanks().await;
        let mut ends = false;
        for tag in next {
            // Where the text ends here, the call is not whole anyway.
            ends = ends || reader.ahead(tag).await != super::reader::Ahead::Other;
        }
        reader.release(!ends);
        if ends {
            return Ok(value);
        }
        value.push_str(close);
    }
}

fn without_line_ends(value: &str) -> &str {
    let value = value.strip_prefix("\r\n").or_else(|| value.strip_prefix('\n')).unwrap_or(value);
    value.strip_suffix("\r\n").or_else(|| value.strip_suffix('\n')).unwrap_or(value)
}

/// The arguments of the open call, which become a JSON object one by one.
pub(super) struct Arguments<'a> {
    work: &'a Work,
    is_empty: bool,
}

impl<'a> Arguments<'a> {
    /// Begins a call.
    pub fn begin(work: &'a Work, name: &str) -> Arguments<'a> {
        work.output.begin(name);
        Arguments { work, is_empty: true }
    }

    /// Adds one, its value as JSON text.
    pub fn add(&mut self, key: &str, json: &str) {
        let before = if self.is_empty { "{" } else { ", " };
        self.is_empty = false;
        self.work.output.arguments(&format!("{before}{}: {json}", notation::quoted(key)));
    }

    /// That was the last one.
    pub fn end(self) {
        self.work.output.arguments(if self.is_empty { "{}" } else { "}" });
    }
}
