//! KvWrite: the step's keys and values into their states, one dispatch each.

use crate::emit::{Emitter, Extent, Grid, Rows, StateBinding};
use moe_run_graph::ir::{Graph, Node, StateId};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: u32 = 64;

/// Words of a state's row of `elems` elements; `shaders/common/kv_<type>.wgsl` reads them.
pub(crate) fn row_words(kv_type: KvType, elems: usize) -> usize {
    match kv_type {
        KvType::F16 => elems / 2,
        KvType::F32 => elems,
        KvType::Q8_0 => elems / 4 + (elems / 32).div_ceil(2),
    }
}

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    key: StateId,
    value: Option<StateId>,
) -> Result<(), BackendError> {
    let slots = *node.inputs.last().ok_or_else(|| BackendError::mismatch(node.op.stem()))?;
    let slots = e.at(slots)?;
    for (i, state) in std::iter::once(key).chain(value).enumerate() {
        let width = e.plan.graph.state(state).row_elems();
        let x = e.at(node.inputs[i])?;
        let variant = e.variant("kv_write", &[("LANES", LANES)]).kv(e.kv_type);
        let params = [
            ("x", x.into()),
            ("width", (width as u32).into()),
            ("slots", slots.into()),
            ("capacity", (e.plan.max_sizes.cached as u32).into()),
            ("rows", e.state_rows(state).into()),
        ];
        let units = if e.kv_type == KvType::Q8_0 { width.div_ceil(64) } else { width / 2 } as u32;
        let tokens = Extent::Rows { rows: Rows::of(e.shape(node.inputs[i])), times: 1, over: 1 };
        e.push(variant, Grid::new(Extent::Fixed(units.div_ceil(LANES)), tokens, Extent::Fixed(1)), &params);
        if let Some(dispatch) = e.last() {
            dispatch.state = StateBinding::Write(state);
        }
    }
    Ok(())
}

pub(super) fn lacking(graph: &Graph, key: StateId, value: Option<StateId>) -> Option<String> {
    let odd = std::iter::once(key).chain(value).map(|s| graph.state(s).row_elems()).find(|w| w % 2 != 0);
    odd.map(|width| format!("rows of {width} elements, wanted an even number"))
}
