//! MiniMax-M3: `<invoke name="NAME">` with one element an argument, whose tag is the argument's name; arrays are `<item>`s, null is
//! left out, and every tag carries a mark in front.

use super::{
    Stop, Work,
    notation::{self, MAX_DEPTH},
    parameter::Arguments,
    schema::Schema,
};

/// What stands in front of every tag.
pub(super) const MARK: &str = "]<]minimax[>[";
/// The name of an array's elements.
pub(super) const ITEM: &str = "item";

/// An element that has begun.
struct Element<'a> {
    name: String,
    schema: Schema<'a>,
    text: String,
    /// Names and JSON texts.
    children: Vec<(String, String)>,
}

impl<'a> Element<'a> {
    fn new(name: String, schema: Schema<'a>) -> Element<'a> {
        Element { name, schema, text: String::new(), children: Vec::new() }
    }

    fn is_array(&self) -> bool {
        let types = self.schema.types();
        let are_items = self.children.iter().all(|(name, _)| name == ITEM);
        are_items && (types.array || !types.object)
    }

    fn json(&self) -> String {
        let types = self.schema.types();
        match (self.children.is_empty(), self.text.trim().is_empty()) {
            (true, true) if types.array && !types.string => "[]".to_owned(),
            (true, true) if types.object && !types.string => "{}".to_owned(),
            (true, _) => self.schema.value(&self.text, false),
            (false, _) if self.is_array() => {
                let items: Vec<&str> = self.children.iter().map(|(_, json)| json.as_str()).collect();
                format!("[{}]", items.join(", "))
            }
            (false, _) => {
                let members: Vec<String> = self
                    .children
                    .iter()
                    .map(|(name, json)| format!("{}: {json}", notation::quoted(name)))
                    .collect();
                format!("{{{}}}", members.join(", "))
            }
        }
    }

    /// The schema of a child.
    fn child(&self, name: &str) -> Schema<'a> {
        let types = self.schema.types();
        if name == ITEM && types.array { self.schema.items() } else { self.schema.property(name) }
    }
}

pub(super) async fn read(work: &Work, tag: &str) -> Result<(), Stop> {
    let reader = &work.reader;
    reader.expect(tag).await?;
    let invoke = format!("{MARK}<invoke name=\"");
    reader.blanks().await;
    reader.expect(&invoke).await?;
    loop {
        let name = reader.line_until("\">").await?;
        arguments(work, &name).await?;
        work.finish_call();
        if !work.trailing(&invoke).await {
            break;
        }
    }
    work.trailing(&format!("{MARK}</tool_call>")).await;
    Ok(())
}

async fn arguments(work: &Work, name: &str) -> Result<(), Stop> {
    let reader = &work.reader;
    let mut arguments = Arguments::begin(work, name);
    let schema = work.schema(name);
    let mut open: Vec<Element<'_>> = Vec::new();
    loop {
        match open.last_mut() {
            Some(element) => {
                reader.until(&[MARK], |more| element.text.push_str(more)).await.ok_or(Stop::End)?;
            }
            None => reader.blanks().await,
        }
        reader.expect(MARK).await?;
        let is_end = reader.take("</").await?;
        if !is_end && !reader.take("<").await? {
            // A mark without a tag is text.
            open.last_mut().ok_or(Stop::Not)?.text.push_str(MARK);
            continue;
        }
        let tag = reader.line_until(">").await?;
        if !is_end {
            if open.len() >= MAX_DEPTH {
                return Err(Stop::Not);
            }
            let schema = open.last().map_or_else(|| schema.property(&tag), |parent| parent.child(&tag));
            open.push(Element::new(tag, schema));
            continue;
        }
        match open.pop() {
            None if tag == "invoke" => break,
            Some(element) if element.name == tag => {
                let json = element.json();
                match open.last_mut() {
                    Some(parent) => parent.children.push((tag, json)),
                    None => arguments.add(&tag, &json),
                }
            }
            _ => return Err(Stop::Not),
        }
    }
    arguments.end();
    Ok(())
}
