//! GLM-4.5 and later: `<tool_call>NAME`, then `<arg_key>` key `</arg_key>`, `<arg_value>` value `</arg_value>`, `</tool_call>`;
//! Hunyuan 3: the same with `<tool_sep>` behind the name, in `<tool_calls>`, every tag with a suffix.
//!
//! Values have no quotes.

use super::{
    Format, Stop, Work,
    parameter::{self, Arguments},
};

struct Tags {
    calls_end: Option<String>,
    begin: String,
    end: String,
    separator: Option<String>,
    key: String,
    key_end: String,
    value: String,
    value_end: String,
}

impl Tags {
    fn new(format: Format, suffix: &str) -> Tags {
        let tag = |name: &str| format!("<{name}{suffix}>");
        let is_hunyuan = format == Format::Hy3;
        Tags {
            calls_end: is_hunyuan.then(|| tag("/tool_calls")),
            begin: tag("tool_call"),
            end: tag("/tool_call"),
            separator: is_hunyuan.then(|| tag("tool_sep")),
            key: tag("arg_key"),
            key_end: tag("/arg_key"),
            value: tag("arg_value"),
            value_end: tag("/arg_value"),
        }
    }
}

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    let Work { reader, output, syntax, .. } = work;
    let tags = Tags::new(syntax.format, &syntax.suffix);
    if tag != tags.begin {
        reader.expect(tag).await?;
        reader.blanks().await;
    }
    reader.expect(&tags.begin).await?;
    loop {
        reader.blanks().await;
        let name = reader.name().await?;
        output.name(&name);
        reader.blanks().await;
        if let Some(separator) = &tags.separator
            && reader.take(separator).await?
        {
            reader.blanks().await;
        }
        let mut arguments = Arguments::begin(work, &name);
        while reader.take(&tags.key).await? {
            let key = reader.line_until(&tags.key_end).await?;
            reader.blanks().await;
            reader.expect(&tags.value).await?;
            let value = parameter::value(work, &tags.value_end, &[&tags.key, &tags.end]).await?;
            arguments.add(key.trim(), &work.schema(&name).property(key.trim()).value(&value, false));
        }
        reader.expect(&tags.end).await?;
        arguments.end();
        work.finish_call();
        if !work.trailing(&tags.begin).await {
            break;
        }
    }
    if let Some(end) = &tags.calls_end {
        work.trailing(end).await;
    }
    Ok(())
}
