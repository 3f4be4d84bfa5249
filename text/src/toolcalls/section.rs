//! Calls whose name and arguments stand apart, the arguments as a JSON object.
//!
//! - Kimi-K2: in a section, each call with an id, `functions.NAME:INDEX`.
//! - DeepSeek-V3.1: in a section, each call with its name; V3 and R1 have a type in the name's place, then the name and a block
//!   of JSON.
//! - Mistral: `[TOOL_CALLS]NAME[ARGS]` for each call, with `[CALL_ID]` in between in some; a list of objects in older ones.

use super::{
    Format, Stop, Work, json_call,
    notation::{self, Notation, Sink},
};

const FENCE: &str = "```";

struct Marks {
    begin: &'static str,
    separator: &'static str,
    end: &'static str,
    section_end: &'static str,
}

const KIMI: Marks = Marks {
    begin: "<|tool_call_begin|>",
    separator: "<|tool_call_argument_begin|>",
    end: "<|tool_call_end|>",
    section_end: "<|tool_calls_section_end|>",
};
const DEEPSEEK: Marks = Marks {
    begin: "<｜tool▁call▁begin｜>",
    separator: "<｜tool▁sep｜>",
    end: "<｜tool▁call▁end｜>",
    section_end: "<｜tool▁calls▁end｜>",
};

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    match work.syntax.format {
        Format::MistralArgs => mistral(work, tag).await,
        Format::KimiK2 => section(work, tag, &KIMI).await,
        _ => section(work, tag, &DEEPSEEK).await,
    }
}

async fn section(work: &Work, tag: &str, marks: &Marks) -> Result<(), Stop> {
    let Work { reader, output, .. } = work;
    if tag != marks.begin {
        reader.expect(tag).await?;
        reader.blanks().await;
    }
    reader.expect(marks.begin).await?;
    loop {
        let name_of: fn(&str) -> &str = if work.syntax.format == Format::KimiK2 { of_id } else { str::trim };
        let written =
            reader.named_line_until(marks.separator, |written| output.name(name_of(written))).await?;
        let name = name_of(&written);
        reader.blanks().await;
        // Only DeepSeek's older form has a name here.
        let is_older =
            work.syntax.format == Format::DeepSeekV3 && reader.peek().await.is_some_and(|c| c != '{');
        if is_older {
            let name = reader.name().await?;
            reader.blanks().await;
            reader.expect(FENCE).await?;
            reader.take("json").await?;
            reader.blanks().await;
            output.begin(&name);
        } else {
            output.begin(name);
        }
        arguments(work).await?;
        reader.blanks().await;
        if is_older {
            reader.close(FENCE).await?;
            reader.blanks().await;
        }
        reader.close(marks.end).await?;
        work.finish_call();
        if !work.trailing(marks.begin).await {
            break;
        }
    }
    work.trailing(marks.section_end).await;
    Ok(())
}

/// The name in an id: what is between the first point and the last colon.
fn of_id(id: &str) -> &str {
    let name = id.split_once('.').map_or(id, |(_, name)| name).trim();
    name.rsplit_once(':').map_or(name, |(name, _)| name).trim()
}

async fn mistral(work: &Work, tag: &str) -> Result<(), Stop> {
    let Work { reader, output, .. } = work;
    reader.expect(tag).await?;
    reader.blanks().await;
    if reader.peek().await == Some('[') {
        json_call::list(work).await?;
    } else {
        let name = reader.name().await?;
        output.name(&name);
        reader.blanks().await;
        if reader.take("[CALL_ID]").await? {
            reader.name().await?;
        }
        reader.take("[ARGS]").await?;
        reader.blanks().await;
        output.begin(&name);
        arguments(work).await?;
    }
    work.finish_call();
    Ok(())
}

/// The open call's arguments.
///
/// Errors: what is ahead is no JSON object.
pub(super) async fn arguments(work: &Work) -> Result<(), Stop> {
    match work.reader.peek().await {
        Some('{') => notation::value(&work.reader, Notation::Json, &mut Sink::Call(&work.output)).await,
        Some(_) => Err(Stop::Not),
        None => Err(Stop::End),
    }
}
