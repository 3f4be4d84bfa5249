//! gpt-oss (harmony): messages `<|start|>assistant<|channel|>CHANNEL to=RECIPIENT <|constrain|>json<|message|>…<|end|>`.
//!
//! The channel `analysis` is reasoning, every other is content; a recipient, which stands in front of the channel or behind it,
//! makes the message a call. `<|call|>` and `<|return|>` end the answer, `<|end|>` a message.

use super::{Stop, Work, section};

const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const START: &str = "<|start|>";
/// The header of reasoning, and what ends it.
pub(super) const REASONING: (&str, &str) = ("<|channel|>analysis<|message|>", "<|end|>");
/// What begins another message.
pub(super) const NEXT: &str = "<|start|>assistant";
/// The header of an answer.
pub(super) const CONTENT: &str = "<|channel|>final<|message|>";
/// What ends a message. The last begins another one, whose role is the assistant's.
const ENDS: &[&str] = &["<|end|>", "<|call|>", "<|return|>", "<|start|>assistant"];
/// Bytes of a header.
const MAX_HEADER: usize = 1024;

/// What a message's header says.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    recipient: Option<String>,
    channel: Option<String>,
}

impl Header {
    fn new(text: &str) -> Header {
        let behind = |mark: &str| {
            let (_, rest) = text.split_once(mark)?;
            let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
            Some(rest[..end].to_owned()).filter(|word| !word.is_empty())
        };
        Header { recipient: behind("to="), channel: behind(CHANNEL) }
    }

    /// The tool that is called.
    fn tool(&self) -> Option<&str> {
        let recipient = self.recipient.as_deref().filter(|to| !["assistant", "user", "all"].contains(to))?;
        Some(recipient.strip_prefix("functions.").unwrap_or(recipient))
    }
}

/// Reads a whole answer.
pub(super) async fn read(work: &Work) {
    let Work { reader, output, prompt_tail, .. } = work;
    // The prompt may have begun a message.
    if let Some((_, header)) = prompt_tail.rsplit_once(START)
        && let Some((header, begun)) = header.split_once(MESSAGE)
        && !ENDS.iter().any(|end| begun.contains(end))
    {
        body(work, &Header::new(header)).await;
    }
    loop {
        if !is_header(work).await {
            // Text without a header.
            let found = reader
                .until(&[START, CHANNEL, "<|end|>", "<|call|>", "<|return|>"], |text| output.content(text))
                .await;
            match found {
                None => return,
                Some(0 | 1) => {}
                Some(end) => reader.skip(["<|end|>", "<|call|>", "<|return|>"][end - 2].len()),
            }
            if found.is_some_and(|found| found > 1) {
                continue;
            }
        }
        reader.hold();
        let done = message(work).await;
        match done {
            Ok(()) => drop(reader.release(false)),
            Err(Stop::End) if reader.was_cut() => {
                let rest = reader.release(false) + &reader.take_rest();
                cut(work, &rest);
            }
            Err(stop) if output.discard() => {
                // Neither a header nor a call: text as it stands, the next message's beginning not among it.
                let text = reader.release(false);
                output.content(&text);
                if stop == Stop::End {
                    output.content(&reader.take_rest());
                }
            }
            Err(_) => drop(reader.release(false)),
        }
        if reader.peek().await.is_none() {
            return;
        }
    }
}

/// Whether a message's header is ahead, rather than text.
async fn is_header(work: &Work) -> bool {
    let reader = &work.reader;
    reader.hold();
    reader.blanks().await;
    let mut is_header = false;
    for mark in [START, CHANNEL, MESSAGE, "to="] {
        is_header = is_header || reader.ahead(mark).await == super::reader::Ahead::Is;
    }
    // The beginning of one is no text where the text was cut off.
    if !is_header && reader.was_cut() {
        for mark in [START, CHANNEL, MESSAGE, "to="] {
            is_header = is_header || reader.ahead(mark).await == super::reader::Ahead::Cut;
        }
    }
    reader.release(true);
    is_header
}

async fn message(work: &Work) -> Result<(), Stop> {
    let reader = &work.reader;
    let mut header = String::new();
    while !reader.take(MESSAGE).await? {
        if header.len() > MAX_HEADER {
            return Err(Stop::Not);
        }
        header.push(reader.next().await?);
    }
    let header = Header::new(&header);
    match header.tool() {
        Some(tool) => call(work, tool).await,
        None => {
            reader.move_hold();
            body(work, &header).await;
            Ok(())
        }
    }
}

async fn call(work: &Work, tool: &str) -> Result<(), Stop> {
    let Work { reader, output, .. } = work;
    output.begin(tool);
    reader.blanks().await;
    if reader.ahead("<|call|>").await == super::reader::Ahead::Is {
        // No arguments at all.
        output.arguments("{}");
    } else {
        section::arguments(work).await?;
    }
    work.finish_call();
    reader.blanks().await;
    for end in &ENDS[..3] {
        if work.trailing(end).await {
            break;
        }
    }
    Ok(())
}

/// The text of a message.
async fn body(work: &Work, header: &Header) {
    let Work { reader, output, .. } = work;
    output.tag();
    let found = match header.channel.as_deref() {
        Some("analysis") => reader.until(ENDS, |text| output.reasoning(text)).await,
        _ => reader.until(ENDS, |text| output.content(text)).await,
    };
    // The last one is the next header's.
    if let Some(end) = found.and_then(|found| ENDS[..3].get(found)) {
        reader.skip(end.len());
    }
    output.tag();
}

/// A header or a call that the end of the text cut off.
fn cut(work: &Work, text: &str) {
    let header = text.split_once(MESSAGE).map_or(text, |(header, _)| header);
    let recipient = header.split_once("to=").map(|(_, rest)| rest);
    match (recipient, Header::new(header).tool()) {
        (Some(rest), Some(tool)) => {
            let is_whole = rest.contains(|c: char| c.is_whitespace() || c == '<');
            work.output.discard();
            if is_whole {
                work.output.begin(tool);
            }
            work.output.set_cut();
        }
        _ => drop(work.output.discard()),
    }
}
