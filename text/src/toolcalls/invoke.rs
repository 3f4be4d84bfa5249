//! Calls as `<invoke name="NAME">` with `<parameter name="KEY">` value `</parameter>` in them.
//!
//! - MiniMax-M2: in `<minimax:tool_call>`; values have no quotes.
//! - DeepSeek-V3.2 (DSML): every tag with a mark, in `<｜DSML｜function_calls>`; `string="true"` says what a value is.

use super::{
    Format, Stop, Work, notation,
    parameter::{self, Arguments},
    reader::Reader,
    schema,
};

const DSML: &str = "｜DSML｜";

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    let reader = &work.reader;
    let mark = if work.syntax.format == Format::Dsml { DSML } else { "" };
    let [invoke, invoke_end] = ["", "/"].map(|slash| format!("<{slash}{mark}invoke"));
    let [parameter, parameter_end] = ["", "/"].map(|slash| format!("<{slash}{mark}parameter"));
    let (invoke_end, parameter_end) = (invoke_end + ">", parameter_end + ">");
    if tag != invoke {
        reader.expect(tag).await?;
        reader.blanks().await;
    }
    reader.expect(&invoke).await?;
    loop {
        let name = attributes(reader).await?.name.ok_or(Stop::Not)?;
        let mut arguments = Arguments::begin(work, &name);
        reader.blanks().await;
        while reader.take(&parameter).await? {
            let Attributes { name: key, is_string } = attributes(reader).await?;
            let key = key.ok_or(Stop::Not)?;
            let value = parameter::value(work, &parameter_end, &[&parameter, &invoke_end]).await?;
            let json = match is_string {
                Some(true) => notation::quoted(&value),
                // The model says that it is no text, whatever the schema allows.
                Some(false) => schema::json_of(&value),
                None => work.schema(&name).property(&key).value(&value, false),
            };
            arguments.add(&key, &json);
        }
        reader.expect(&invoke_end).await?;
        arguments.end();
        work.finish_call();
        if !work.trailing(&invoke).await {
            break;
        }
    }
    if tag != invoke {
        work.trailing(&tag.replacen('<', "</", 1)).await;
    }
    Ok(())
}

#[derive(Default)]
struct Attributes {
    name: Option<String>,
    is_string: Option<bool>,
}

/// Attributes up to the end of a tag.
async fn attributes(reader: &Reader) -> Result<Attributes, Stop> {
    let mut attributes = Attributes::default();
    loop {
        reader.blanks().await;
        if reader.take(">").await? {
            return Ok(attributes);
        }
        let key = reader.name().await?;
        reader.expect("=\"").await?;
        let value = reader.line_until("\"").await?;
        match key.as_str() {
            "name" => attributes.name = Some(value),
            "string" => attributes.is_string = Some(value == "true"),
            _ => {}
        }
    }
}
