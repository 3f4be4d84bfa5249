//! Calls that are JSON objects: `{"name": …, "arguments": {…}}`, keys in any order.
//!
//! - Hermes, Qwen3, Granite: `<tool_call>` object `</tool_call>`; here and there a list of them.
//! - GigaChat: `<|function_call|>` object.

use super::{
    Format, Stop, Work,
    notation::{self, Notation, Sink},
    schema,
};

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    work.reader.expect(tag).await?;
    work.reader.blanks().await;
    let close = (work.syntax.format != Format::GigaChat).then(|| tag.replacen('<', "</", 1));
    behind(work, close.as_deref()).await
}

/// What stands behind an opening tag and blanks, and the tag that closes it.
pub(super) async fn behind(work: &Work, close: Option<&str>) -> Result<(), Stop> {
    let is_list = work.reader.peek().await == Some('[');
    if is_list {
        list(work).await?
    } else {
        object(work).await?
    }
    if let Some(close) = close {
        work.reader.blanks().await;
        work.reader.close(close).await?;
    }
    work.finish_call();
    Ok(())
}

/// A list of calls; the last one is left open, for the tag that may have to follow.
///
/// Errors: it is none, or has no call.
pub(super) async fn list(work: &Work) -> Result<(), Stop> {
    let reader = &work.reader;
    reader.expect("[").await?;
    loop {
        reader.blanks().await;
        object(work).await?;
        reader.blanks().await;
        match reader.next().await? {
            ',' => work.finish_listed(),
            ']' => return Ok(()),
            _ => return Err(Stop::Not),
        }
    }
}

/// One object. The call is left open, for the tag that may have to follow.
///
/// Errors: it is no JSON, or no call.
pub(super) async fn object(work: &Work) -> Result<(), Stop> {
    let Work { reader, output, .. } = work;
    let mut name: Option<String> = None;
    let mut arguments: Option<String> = None;
    let mut has_begun = false;
    reader.expect("{").await?;
    reader.blanks().await;
    let mut is_over = reader.take("}").await?;
    while !is_over {
        reader.blanks().await;
        let key = notation::json_text(reader).await?;
        reader.blanks().await;
        reader.expect(":").await?;
        reader.blanks().await;
        match (key.as_str(), &name, reader.peek().await) {
            ("name" | "tool_name" | "function", None, Some('"')) => {
                let written = notation::json_text(reader).await?;
                output.name(&written);
                name = Some(written);
            }
            ("arguments" | "parameters", Some(name), Some('{')) if arguments.is_none() && !has_begun => {
                output.begin(name);
                has_begun = true;
                notation::value(reader, Notation::Json, &mut Sink::Call(output)).await?;
            }
            ("arguments" | "parameters", _, _) if arguments.is_none() && !has_begun => {
                let mut raw = String::new();
                notation::value(reader, Notation::Json, &mut Sink::Text(&mut raw)).await?;
                arguments = Some(raw);
            }
            _ => notation::value(reader, Notation::Json, &mut Sink::Nothing).await?,
        }
        reader.blanks().await;
        match reader.next().await? {
            ',' => {}
            '}' => is_over = true,
            _ => return Err(Stop::Not),
        }
    }
    let name = name.filter(|name| !name.is_empty()).ok_or(Stop::Not)?;
    if !has_begun {
        let arguments = given(arguments).ok_or(Stop::Not)?;
        output.begin(&name);
        output.arguments(&arguments);
    }
    Ok(())
}

/// Arguments: an object, an object in a string, or nothing.
fn given(arguments: Option<String>) -> Option<String> {
    let Some(json) = arguments.filter(|json| json != "null") else { return Some("{}".to_owned()) };
    let json = if json.starts_with('"') { serde_json::from_str(&json).ok()? } else { json };
    let json = json.trim();
    schema::is_object(json).then(|| json.to_owned())
}
