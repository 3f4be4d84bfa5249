//! Gemma 4: `<|tool_call>call:NAME{key:value,…}<tool_call|>`, values in Gemma's notation. Text beside a call comes after it.

use super::{
    Stop, Work,
    notation::{self, Notation, Sink},
};

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    let Work { reader, output, .. } = work;
    reader.expect(tag).await?;
    reader.blanks().await;
    reader.expect("call:").await?;
    let name = reader.name().await?;
    reader.blanks().await;
    match reader.peek().await {
        Some('{') => {}
        Some(_) => return Err(Stop::Not),
        None => return Err(Stop::End),
    }
    output.begin(&name);
    notation::value(reader, Notation::Gemma, &mut Sink::Call(output)).await?;
    reader.blanks().await;
    reader.close("<tool_call|>").await?;
    work.finish_call();
    // Where the answer of the tool is to come.
    work.trailing("<|tool_response>").await;
    Ok(())
}
