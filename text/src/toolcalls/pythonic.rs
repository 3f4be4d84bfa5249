//! LFM2: `<|tool_call_start|>[NAME(key=value, …), …]<|tool_call_end|>`, values as Python's literals; a list of JSON objects in
//! some.

use super::{
    Stop, Work, json_call,
    notation::{self, Notation, Sink},
    parameter::Arguments,
};

const END: &str = "<|tool_call_end|>";

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    let reader = &work.reader;
    reader.expect(tag).await?;
    reader.blanks().await;
    if is_list_of_objects(work).await {
        json_call::list(work).await?;
    } else {
        reader.expect("[").await?;
        loop {
            reader.blanks().await;
            call(work).await?;
            reader.blanks().await;
            match reader.next().await? {
                ',' => work.finish_listed(),
                ']' => break,
                _ => return Err(Stop::Not),
            }
        }
    }
    reader.blanks().await;
    reader.close(END).await?;
    work.finish_call();
    Ok(())
}

async fn is_list_of_objects(work: &Work) -> bool {
    let reader = &work.reader;
    reader.hold();
    let mut is_list = matches!(reader.take("[").await, Ok(true));
    if is_list {
        reader.blanks().await;
        is_list = reader.peek().await == Some('{');
    }
    reader.release(true);
    is_list
}

async fn call(work: &Work) -> Result<(), Stop> {
    let reader = &work.reader;
    let name = reader.name().await?;
    reader.blanks().await;
    reader.expect("(").await?;
    let mut arguments = Arguments::begin(work, &name);
    loop {
        reader.blanks().await;
        if reader.take(")").await? {
            break;
        }
        let key = reader.name().await?;
        reader.blanks().await;
        reader.expect("=").await?;
        let mut json = String::new();
        notation::value(reader, Notation::Python, &mut Sink::Text(&mut json)).await?;
        arguments.add(&key, &json);
        reader.blanks().await;
        if !reader.take(",").await? {
            reader.expect(")").await?;
            break;
        }
    }
    arguments.end();
    Ok(())
}
