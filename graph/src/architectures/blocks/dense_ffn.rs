//! One gated MLP for all tokens.

use super::branch::Branch;
use crate::architectures::{LowerError, Lowering, only};
use crate::gguf::keys::{blk, layer as tensor};
use crate::ir::{ActivationFn, LayerIdx, Op, Stage, ValueId};

/// Names of a SwiGLU's nodes, and of its tensors in the file.
pub(super) struct SwiGluNames {
    pub gate: (&'static str, &'static str),
    pub up: (&'static str, &'static str),
    pub act: &'static str,
    /// The second name is that of the product without the model's residual scale.
    pub down: ([&'static str; 2], &'static str),
    /// gate, up, act(gate), act(gate) · up, what comes out.
    pub stages: [Stage; 5],
}

/// Appends down(act(gate x) · up x), with its taps.
pub(super) fn swiglu(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    width: usize,
    activation: ActivationFn,
    names: &SwiGluNames,
) -> Result<Branch, LowerError> {
    let (at, hidden_size) = (Some(layer), l.config.hidden_size);
    let project = |l: &mut Lowering<'_>, (name, rest): (&'static str, &str)| {
        let weight = l.matrix(&blk(layer.index(), rest), width, hidden_size)?;
        Ok::<_, LowerError>(only(l.graph.push(
            at,
            name,
            Op::MatMul { weight, bias: None, scale: None },
            &[x],
        )?))
    };
    let gate = project(l, names.gate)?;
    let up = project(l, names.up)?;
    let act = l.graph.push(at, names.act, Op::GatedAct { activation }, &[gate, up])?;
    let (down, rest) = names.down;
    let weight = l.matrix(&blk(layer.index(), rest), hidden_size, width)?;
    let op = |scale| Op::MatMul { weight: weight.clone(), bias: None, scale };
    let out = Branch::begin(l, at, down, op, &[act[1]])?[0];
    let values = [gate, up, act[0], act[1], out.plain];
    for (stage, value) in names.stages.into_iter().zip(values) {
        l.graph.tap(at, stage, &[value])?;
    }
    Ok(out)
}

/// Appends a dense feed-forward part of the normed input [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    normed: ValueId,
    intermediate_size: usize,
    activation: ActivationFn,
) -> Result<Branch, LowerError> {
    let names = SwiGluNames {
        gate: ("gate_proj", tensor::FFN_GATE),
        up: ("up_proj", tensor::FFN_UP),
        act: "swiglu",
        down: (["down_proj", "down_proj_unscaled"], tensor::FFN_DOWN),
        stages: [Stage::FfnGate, Stage::FfnUp, Stage::FfnSilu, Stage::FfnSwigl, Stage::FfnOut],
    };
    swiglu(l, layer, normed, intermediate_size, activation, &names)
}
