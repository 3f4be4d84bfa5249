//! A dump as one HTML file: styles, script and data inside, nothing fetched.

use super::json;
use super::view::Dump;
use crate::shown::shown;

/// The page.
///
/// # Errors
/// As [`json`].
pub fn html(dump: &Dump) -> Result<String, serde_json::Error> {
    // Inside a script element only `</` and `<!--` could end the data early: a file may name its model anything.
    let data = json(dump)?.replace('<', "\\u003c");
    let name = dump.model.name.as_ref().unwrap_or(&dump.model.architecture);
    let title: String = shown(name)
        .to_string()
        .chars()
        .map(|c| match c {
            '<' => "&lt;".to_owned(),
            '&' => "&amp;".to_owned(),
            c => c.to_string(),
        })
        .collect();
    let parts = [
        ("/*style*/", include_str!("page/page.css")),
        ("/*script*/", include_str!("page/page.js")),
        ("{{title}}", title.as_str()),
        ("{{data}}", data.as_str()),
    ];
    // One pass over the frame: a part is never searched for another's mark.
    let mut rest = include_str!("page/page.html");
    let mut page = String::with_capacity(data.len() + 64 * 1024);
    while let Some((at, mark, part)) =
        parts.iter().filter_map(|(mark, part)| Some((rest.find(mark)?, *mark, *part))).min()
    {
        page.push_str(&rest[..at]);
        page.push_str(part);
        rest = &rest[at + mark.len()..];
    }
    page.push_str(rest);
    Ok(page)
}
