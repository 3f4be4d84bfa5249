//! Texts in which tags begin calls: reasoning first, where there is any, then content with calls in it.

use super::{
    Format, Stop, Work, arg_key, blocks, gemma, invoke, json_call, minimax_m3, parameter, pythonic, section,
};

/// What failed attempts at calls may have cost, beside the length of the text: beyond, a broken call is not searched for
/// another one inside of it.
const MAX_AGAIN: usize = 1 << 16;

/// Reads a whole answer.
pub(super) async fn read(work: &Work) {
    let Work { reader, output, syntax, .. } = work;
    let openers: Vec<&str> = syntax.openers.iter().map(String::as_str).collect();
    let mut tags = openers.clone();
    reasoning(work).await;
    // A control token begins reasoning anywhere; a word in angle brackets may be one of the text's.
    let think =
        syntax.reasoning.as_ref().map(|(open, _)| open.as_str()).filter(|open| !open.starts_with("<think"));
    tags.extend(think.filter(|open| open.starts_with("<|") || open.starts_with('[')));
    let mut spent = 0;
    while let Some(found) = reader.until(&tags, |text| output.content(text)).await {
        if found >= openers.len() {
            open_reasoning(work).await;
            continue;
        }
        attempt(work, found, tags[found], &mut spent).await;
    }
}

/// The reasoning that the text begins with, or goes on with.
async fn reasoning(work: &Work) {
    let Work { reader, output, syntax, .. } = work;
    let Some((open, close)) = &syntax.reasoning else { return };
    reader.hold();
    reader.blanks().await;
    let is_open = matches!(reader.take(open).await, Ok(true));
    if is_open || work.is_inside_reasoning {
        reader.release(false);
        output.tag();
        inside_reasoning(work, close).await;
    } else if matches!(reader.take(close).await, Ok(true)) {
        // Reasoning that is over before it began.
        reader.release(false);
        output.tag();
    } else {
        reader.release(true);
        if work.prompt_tail.trim_end().ends_with(close.as_str()) {
            output.tag();
        }
        if reader.was_cut() {
            drop_beginning(work, &[open, close]).await;
        }
    }
}

/// A text that was cut off inside of its first tag has nothing.
async fn drop_beginning(work: &Work, tags: &[&String]) {
    work.reader.hold();
    work.reader.blanks().await;
    let rest = work.reader.take_rest();
    let is_tag = rest.len() > 1 && tags.iter().any(|tag| tag.starts_with(&rest));
    work.reader.release(!is_tag);
}

async fn open_reasoning(work: &Work) {
    let Some((open, close)) = &work.syntax.reasoning else { return };
    work.reader.skip(open.len());
    work.output.tag();
    inside_reasoning(work, close).await;
}

async fn inside_reasoning(work: &Work, close: &str) {
    if work.reader.until(&[close], |text| work.output.reasoning(text)).await.is_some() {
        work.reader.skip(close.len());
    }
    work.output.tag();
}

/// Reads a call where a tag begins one, else gives the tag as content.
pub(super) async fn attempt(work: &Work, opener: usize, tag: &str, spent: &mut usize) {
    let Work { reader, output, .. } = work;
    let began = reader.position();
    reader.hold();
    let done = call(work, opener, tag).await;
    match done {
        Ok(()) => drop(reader.release(false)),
        Err(Stop::End) if reader.was_cut() => {
            output.commit();
            let rest = reader.release(false);
            if !rest.trim().is_empty() {
                output.set_cut();
            }
            reader.take_rest();
        }
        Err(_) if !output.discard() => drop(reader.release(false)),
        Err(_) => {
            let goes_back = *spent <= MAX_AGAIN + reader.position();
            let broken = reader.release(goes_back);
            *spent += broken.len();
            if !goes_back {
                output.content(&broken);
            } else if reader.position() == began {
                // The first call: its tag is text, and what follows may be anything.
                reader.skip(tag.len());
                output.content(tag);
            }
        }
    }
}

/// A call, or several, from the tag that begins it.
async fn call(work: &Work, opener: usize, tag: &str) -> Result<(), Stop> {
    match work.syntax.format {
        Format::HermesJson | Format::GigaChat => json_call::read(work, tag).await,
        Format::Qwen3Xml => parameter::read(work, opener, tag).await,
        Format::GlmArgKey | Format::Hy3 => arg_key::read(work, tag).await,
        Format::KimiK2 | Format::DeepSeekV3 | Format::MistralArgs => section::read(work, tag).await,
        Format::Dsml | Format::MiniMaxM2 => invoke::read(work, tag).await,
        Format::MiniMaxM3 => minimax_m3::read(work, tag).await,
        Format::Gemma4 => gemma::read(work, tag).await,
        Format::Lfm2Pythonic => pythonic::read(work, tag).await,
        Format::CohereActions | Format::SolarOpen => blocks::calls(work, tag).await,
        // The one has a reader of its own, the other no calls.
        Format::Harmony | Format::Plain => Err(Stop::Not),
    }
}
