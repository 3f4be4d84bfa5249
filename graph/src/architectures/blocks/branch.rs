//! What a block adds to the residual stream, under the factor that some models put on it.

use crate::architectures::{LowerError, Lowering, only};
use crate::ir::{LayerIdx, Op, ValueId};

/// A result times the model's residual scale, and without it: stages show a block's result, not what is left of it.
/// Without a residual scale the two are one value.
#[derive(Debug, Clone, Copy)]
pub(in crate::architectures) struct Branch {
    /// What flows on.
    pub scaled: ValueId,
    /// What taps show.
    pub plain: ValueId,
}

impl Branch {
    /// Appends the op that brings the factor in: `op` makes it, with a factor or with none. The one without feeds only
    /// taps, and is called `plain_name`. One branch for each result of the op.
    pub(super) fn begin(
        l: &mut Lowering<'_>,
        at: Option<LayerIdx>,
        [name, plain_name]: [&'static str; 2],
        op: impl Fn(Option<f32>) -> Op,
        inputs: &[ValueId],
    ) -> Result<Vec<Branch>, LowerError> {
        let scale = l.config.residual_scale;
        let scaled = l.graph.push(at, name, op(scale), inputs)?;
        let plain = match scale {
            Some(_) => l.graph.push(at, plain_name, op(None), inputs)?,
            None => scaled.clone(),
        };
        Ok(scaled.into_iter().zip(plain).map(|(scaled, plain)| Branch { scaled, plain }).collect())
    }

    /// Appends an op that keeps the factor, on operands with it and, where those differ, without it.
    pub(super) fn through<const N: usize>(
        l: &mut Lowering<'_>,
        at: Option<LayerIdx>,
        [name, plain_name]: [&'static str; 2],
        op: &Op,
        [scaled, plain]: [[ValueId; N]; 2],
    ) -> Result<Branch, LowerError> {
        let with = only(l.graph.push(at, name, op.clone(), &scaled)?);
        let without = match scaled == plain {
            true => with,
            false => only(l.graph.push(at, plain_name, op.clone(), &plain)?),
        };
        Ok(Branch { scaled: with, plain: without })
    }
}
