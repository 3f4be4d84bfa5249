//! Answers of several blocks, each of one kind: everything stands in some block.
//!
//! - Cohere: `<|START_THINKING|>`, `<|START_TEXT|>` (`<|START_RESPONSE|>` in older ones), `<|START_ACTION|>` with a list of calls
//!   in JSON, each with its end.
//! - Solar-Open: `<|think|>`, `<|content|>`, `<|tool_calls|>` begin messages, which `<|end|>` ends.

use super::{Format, Stop, Work, json_call, section};

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Reasoning,
    Content,
    Calls,
    /// A tag without meaning.
    Nothing,
}

type Tags = &'static [(&'static str, Block)];

const COHERE: Tags = &[
    (COHERE_REASONING.0, Block::Reasoning),
    (COHERE_TEXT, Block::Content),
    (COHERE_RESPONSE, Block::Content),
    (COHERE_CALLS, Block::Calls),
    (COHERE_REASONING.1, Block::Nothing),
    ("<|END_TEXT|>", Block::Nothing),
    ("<|END_RESPONSE|>", Block::Nothing),
];
/// What stands around Cohere's reasoning.
pub(super) const COHERE_REASONING: (&str, &str) = ("<|START_THINKING|>", "<|END_THINKING|>");
/// What begins Cohere's content.
pub(super) const COHERE_TEXT: &str = "<|START_TEXT|>";
/// The same in older ones.
pub(super) const COHERE_RESPONSE: &str = "<|START_RESPONSE|>";
/// What begins Cohere's list of calls.
pub(super) const COHERE_CALLS: &str = "<|START_ACTION|>";

const SOLAR: Tags = &[
    (SOLAR_REASONING.0, Block::Reasoning),
    (SOLAR_CONTENT, Block::Content),
    (SOLAR_CALLS, Block::Calls),
    (SOLAR_NEXT, Block::Nothing),
    (SOLAR_REASONING.1, Block::Nothing),
    ("<|flush|>", Block::Nothing),
];
/// What stands around Solar's reasoning.
pub(super) const SOLAR_REASONING: (&str, &str) = ("<|think|>", "<|end|>");
/// What begins Solar's content.
pub(super) const SOLAR_CONTENT: &str = "<|content|>";
/// What begins another message.
pub(super) const SOLAR_NEXT: &str = "<|begin|>assistant";
/// What begins Solar's calls.
pub(super) const SOLAR_CALLS: &str = "<|tool_calls|>";

/// The tags that end a block of text.
fn ends(format: Format, block: Block) -> &'static [&'static str] {
    match (format, block) {
        (Format::SolarOpen, _) => &["<|end|>", "<|flush|>", "<|begin|>assistant"],
        (_, Block::Reasoning) => &["<|END_THINKING|>"],
        _ => &["<|END_TEXT|>", "<|END_RESPONSE|>"],
    }
}

/// Reads a whole answer.
pub(super) async fn read(work: &Work) {
    let Work { reader, output, syntax, prompt_tail, .. } = work;
    let tags = if syntax.format == Format::SolarOpen { SOLAR } else { COHERE };
    let texts: Vec<&str> = tags.iter().map(|(tag, _)| *tag).collect();
    // The prompt may have begun a block.
    let begun = tags.iter().find(|(tag, _)| prompt_tail.trim_end().ends_with(tag)).map(|(_, block)| *block);
    if let Some(block @ (Block::Reasoning | Block::Content)) = begun {
        inside(work, block).await;
    }
    let mut spent = 0;
    while let Some(found) = reader.until(&texts, |text| output.content(text)).await {
        let (tag, block) = tags[found];
        if block == Block::Calls {
            super::tagged::attempt(work, found, tag, &mut spent).await;
            continue;
        }
        reader.skip(tag.len());
        output.tag();
        if block != Block::Nothing {
            inside(work, block).await;
        }
    }
}

async fn inside(work: &Work, block: Block) {
    let Work { reader, output, syntax, .. } = work;
    let ends = ends(syntax.format, block);
    let found = match block {
        Block::Reasoning => reader.until(ends, |text| output.reasoning(text)).await,
        _ => reader.until(ends, |text| output.content(text)).await,
    };
    if let Some(found) = found {
        reader.skip(ends[found].len());
    }
    output.tag();
}

/// Calls, from the tag that begins them.
///
/// Errors: there are none.
pub(super) async fn calls(work: &Work, tag: &str) -> Result<(), Stop> {
    let Work { reader, output, syntax, .. } = work;
    reader.expect(tag).await?;
    reader.blanks().await;
    if syntax.format == Format::CohereActions {
        json_call::list(work).await?;
        reader.blanks().await;
        reader.close("<|END_ACTION|>").await?;
        work.finish_call();
        return Ok(());
    }
    reader.expect("<|tool_call:begin|>").await?;
    loop {
        // An id, which may be empty.
        while !reader.take("<|tool_call:name|>").await? {
            match reader.next().await? {
                '<' | '\n' => return Err(Stop::Not),
                _ => {}
            }
        }
        let name = reader.named_line_until("<|tool_call:args|>", |name| output.name(name)).await?;
        reader.blanks().await;
        output.begin(name.trim());
        section::arguments(work).await?;
        reader.blanks().await;
        reader.close("<|tool_call:end|>").await?;
        work.finish_call();
        if !work.trailing("<|tool_call:begin|>").await {
            break;
        }
    }
    work.trailing("<|calls|>").await;
    Ok(())
}
