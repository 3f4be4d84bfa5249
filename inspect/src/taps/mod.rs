//! Stage 5, looking: what becomes of the values that taps deliver.
//!
//! Input: the [`TapValue`]s of a running step. Output: statistics ([`stats`]), a record of the routing ([`routing`]),
//! tensor files ([`save`], [`tensor_file`]) and comparisons ([`compare`]). A sink is an [`Observer`]; several are joined
//! with [`Fanout`]. Deliberately absent: any arithmetic of the model.

pub mod compare;
pub mod flips;
pub mod number;
pub mod routing;
pub mod save;
pub mod select;
pub mod states;
pub mod stats;
pub mod tensor_file;
pub mod tensor_set;

pub use moe_run_graph::ir::RowAxis;
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::ActBlock;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{ExecutableInfo, Observer, TapValue, TensorData, ValueAccess};
use serde::Serialize;
use std::borrow::Cow;
use std::time::Duration;

/// What the values of a run depend on beside the model: the same fields in every file that records a run.
#[derive(Debug, Serialize)]
pub(crate) struct RunSettings<'a> {
    backend: &'a str,
    device: &'a str,
    activations: &'a str,
    q8_super_block: Option<usize>,
    kv_type: &'a str,
}

impl<'a> From<&'a ExecutableInfo> for RunSettings<'a> {
    fn from(info: &'a ExecutableInfo) -> RunSettings<'a> {
        RunSettings {
            backend: info.backend,
            device: &info.device,
            activations: info.activations.name(),
            q8_super_block: info.q8_super_block.map(ActBlock::elems),
            kv_type: info.kv_type.name(),
        }
    }
}

/// Hands every event to several observers, in order.
#[derive(Default)]
pub struct Fanout<'a> {
    /// The observers.
    pub sinks: Vec<&'a mut dyn Observer>,
}

impl std::fmt::Debug for Fanout<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fanout of {}", self.sinks.len())
    }
}

impl Observer for Fanout<'_> {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.sinks.iter_mut().try_for_each(|s| s.before_launch(plan, launch, values))
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.sinks.iter_mut().try_for_each(|s| s.after_launch(plan, launch, elapsed, values))
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.sinks.iter_mut().try_for_each(|s| s.tap(tap))
    }
}

/// The elements of a tensor as floats, borrowed where they are floats already.
#[must_use]
pub fn floats(data: &TensorData) -> Cow<'_, [f32]> {
    match data {
        TensorData::F32(v) => Cow::Borrowed(v),
        TensorData::U32(_) => Cow::Owned(data.to_f32()),
    }
}

/// Calls `each(position, elements)` for every row of a tapped value; `[H, T, S]` gives H rows a position, cut to the
/// visible positions.
pub fn for_each_row(tap: &TapValue<'_>, mut each: impl FnMut(u32, &[f32])) {
    let data = tap.tensor.floats();
    match RowAxis::of(tap.stage) {
        RowAxis::HeadsTokensCached => {
            let [_, tokens, cached] = tap.tensor.shape[..] else { return };
            for (row, elems) in data.chunks_exact(cached.max(1)).enumerate() {
                let position = tap.positions[row % tokens.max(1)];
                each(position, &elems[..cached.min(position as usize + 1)]);
            }
        }
        axis => {
            let rows = tap.tensor.shape.first().copied().unwrap_or(0);
            let width = tap.tensor.shape.iter().skip(1).product::<usize>().max(1);
            for (row, elems) in data.chunks_exact(width).enumerate().take(rows) {
                let token = if axis == RowAxis::LogitsRows { tap.logits_rows[row] as usize } else { row };
                each(tap.positions[token], elems);
            }
        }
    }
}
