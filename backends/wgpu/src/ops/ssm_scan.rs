//! SsmScan: a workgroup for some rows of a head's state, or for some channels, which it keeps from token to token.

use crate::emit::{Emitter, Extent, Grid, StateBinding};
use moe_run_graph::ir::{DecayOf, Node, SsmScanAttrs};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 256;
/// Rows of a workgroup: ROWS in the shader, CHANNELS in that of channels.
const ROWS: usize = 16;
/// The largest state of a row: B and C, 8 bytes an element, in 16 KiB of workgroup memory beside 4 bytes a lane.
const MAX_STATE_SIZE: usize = 1024;

pub(super) fn lacking(attrs: &SsmScanAttrs) -> Option<String> {
    let SsmScanAttrs {
        num_heads: _,
        head_dim: _,
        state_size,
        n_groups: _,
        decay_of: DecayOf::Head | DecayOf::Element,
        a: _,
        d: _,
        dt_bias: _,
        state: _,
    } = *attrs;
    (state_size > MAX_STATE_SIZE)
        .then(|| format!("a state of {state_size} a row, wanted at most {MAX_STATE_SIZE}"))
}

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node, attrs: &SsmScanAttrs) -> Result<(), BackendError> {
    let (xbc, dt, positions) = (e.at(node.inputs[0])?, e.at(node.inputs[1])?, e.at(node.inputs[2])?);
    let y = e.output(node.outputs[0]);
    let common = [
        ("xbc", xbc.into()),
        ("dt", dt.into()),
        ("positions", positions.into()),
        ("y", y.into()),
        ("a", e.small(Some(attrs.a))?.into()),
        ("d", e.small(Some(attrs.d))?.into()),
        ("dt_bias", e.small(Some(attrs.dt_bias))?.into()),
    ];
    let sizes = [("LANES", LANES), ("STATE_SIZE", attrs.state_size as u32)];
    let heads = attrs.num_heads as u32;
    let groups = |n: u32| Extent::Fixed(n.div_ceil(ROWS as u32));
    match attrs.decay_of {
        DecayOf::Head => {
            let own = [
                ("heads", heads.into()),
                ("head_dim", (attrs.head_dim as u32).into()),
                ("groups", (attrs.n_groups as u32).into()),
            ];
            let grid = Grid::new(groups(attrs.head_dim as u32), Extent::Fixed(heads), Extent::Fixed(1));
            e.push(e.variant("ssm_scan", &sizes), grid, &[&common[..], &own].concat());
        }
        DecayOf::Element => {
            let grid = Grid::new(groups(heads), Extent::Fixed(1), Extent::Fixed(1));
            let params = [&common[..], &[("channels", heads.into())]].concat();
            e.push(e.variant("ssm_scan_channels", &sizes), grid, &params);
        }
    }
    if let Some(dispatch) = e.last() {
        dispatch.state = StateBinding::Update(vec![attrs.state]);
    }
    Ok(())
}
