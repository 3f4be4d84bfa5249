//! Between stages 4 and 5, for people and for tools: Graph or Plan → text, JSON, DOT or one HTML page.
//!
//! Input: a lowered graph, or a plan made from it, and the step that costs are stated for. Output: a [`Dump`], whose
//! JSON is a stable schema (`docs/graph-json.md`); the other three formats are drawn from the dump and from nothing
//! else. Deliberately absent: anything that runs. Measured times come in as plain numbers by launch.

mod attributes;
mod build;
mod dot;
mod fold;
mod html;
mod kernel;
mod sections;
mod table;
mod text;
pub mod units;
mod view;

use crate::shown::shown_json;

pub use build::{DumpInput, Subject, dump};
pub use dot::dot;
pub use html::html;
pub use kernel::KernelInfo;
pub use text::text;
pub use view::{
    BackendView, BufferView, CostView, Dump, KindView, LaunchView, LayerGroupView, Level, MeasuredTimes,
    MeasuredView, MemoryView, ModelView, NodeView, SCHEMA_VERSION, StateView, StepView, TapView, TotalsView,
    ValueView, WeightView,
};

/// The dump as JSON, one line. What a file's names hold to steer a terminal is escaped.
///
/// # Errors
/// None in practice: a dump holds nothing that JSON cannot.
pub fn json(dump: &Dump) -> Result<String, serde_json::Error> {
    Ok(shown_json(&serde_json::to_string(dump)?))
}
