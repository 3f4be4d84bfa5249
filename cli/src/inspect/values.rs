//! Values of metadata as one line each.

use super::{ARRAY_SHOWN, STRING_SHOWN, first_json, metadata_json};
use moe_run_graph::gguf::{MetaArray, MetaValue};
use moe_run_graph::shown::{shown, shown_bytes};

/// A string that is not UTF-8, in quotes.
fn quoted_bytes(bytes: &[u8]) -> String {
    format!("\"{}\"", shown_bytes(bytes).replace('"', "\\\""))
}

/// A value of metadata, shortened where it is long.
pub(super) fn metadata_text(value: &MetaValue) -> String {
    match value {
        MetaValue::String(s) => match s.char_indices().nth(STRING_SHOWN) {
            Some((end, _)) => format!("{:?}… ({} bytes)", &s[..end], s.len()),
            None => format!("{s:?}"),
        },
        MetaValue::Bytes(v) => match v.split_at_checked(STRING_SHOWN) {
            Some((first, rest)) if !rest.is_empty() => {
                format!("{}… ({} bytes, not UTF-8)", quoted_bytes(first), v.len())
            }
            _ => format!("{} (not UTF-8)", quoted_bytes(v)),
        },
        MetaValue::Array(MetaArray::Bytes(v)) => {
            let more = if v.len() > ARRAY_SHOWN { ", …" } else { "" };
            let first: Vec<String> = v.iter().take(ARRAY_SHOWN).map(|v| quoted_bytes(v)).collect();
            format!("{} string: [{}{more}] (not all UTF-8)", v.len(), first.join(","))
        }
        MetaValue::Array(array) => {
            let more = if array.len() > ARRAY_SHOWN { ", …" } else { "" };
            let first = first_json(array).to_string();
            let first = first.strip_suffix(']').unwrap_or(&first);
            format!("{} {}: {}{more}]", array.len(), array.element_type(), shown(first))
        }
        MetaValue::F32(x) => x.to_string(), // JSON has no NaN
        MetaValue::F64(x) => x.to_string(),
        scalar => metadata_json("", scalar)["value"].to_string(),
    }
}
