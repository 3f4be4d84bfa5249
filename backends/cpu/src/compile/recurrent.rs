//! The launches of ops that carry a state from token to token, and of what tells them how.

use super::{Compiler, Work};
use crate::ops::causal_conv::{CHUNK_CHANNELS, CausalConv};
use crate::ops::delta_rule::{DeltaGates, DeltaRule};
use crate::ops::ssm_scan::{self, SsmScan};
use crate::share::Share;
use moe_run_graph::ir::{CausalConvAttrs, DecayOf, DeltaRuleAttrs, Node, SsmScanAttrs, StateId, WeightId};
use moe_run_runtime::error::BackendError;

type Compiled = Result<Box<dyn Work>, BackendError>;

impl Compiler<'_> {
    /// A chunk a head of a state.
    fn by_head(&self, state: StateId) -> Share {
        Share::Columns(self.plan.graph.state(state).width)
    }

    pub(super) fn causal_conv(&mut self, node: &Node, attrs: &CausalConvAttrs) -> Compiled {
        let CausalConvAttrs { weight, bias, activation, state } = *attrs;
        let kept = self.plan.graph.state(state).width;
        self.needs.row_elems = self.needs.row_elems.max(CausalConv::scratch_elems(kept));
        Ok(Box::new(CausalConv {
            x: self.input(node, 0)?,
            out: self.output(node)?.shared(Share::Columns(CHUNK_CHANNELS)),
            taps: CausalConv::taps(&self.vector(weight)?, kept + 1),
            bias: self.opt_vector(bias)?,
            activation,
            state: self.state_output(state, Share::Columns(CHUNK_CHANNELS * kept)),
            kept,
        }))
    }

    pub(super) fn delta_gates(
        &self,
        node: &Node,
        a: WeightId,
        dt_bias: WeightId,
        bound: Option<f32>,
    ) -> Compiled {
        Ok(Box::new(DeltaGates {
            b: self.input(node, 0)?,
            dt: self.input(node, 1)?,
            a: self.vector(a)?,
            dt_bias: self.vector(dt_bias)?,
            bound,
            beta: self.maybe(node.outputs[0]),
            decay: self.maybe(node.outputs[1]),
        }))
    }

    pub(super) fn delta_rule(&mut self, node: &Node, attrs: &DeltaRuleAttrs) -> Compiled {
        self.needs.row_elems = self.needs.row_elems.max(DeltaRule::scratch_elems(attrs));
        Ok(Box::new(DeltaRule {
            attrs: attrs.clone(),
            qkv: self.input(node, 0)?,
            beta: self.input(node, 1)?,
            decay: self.input(node, 2)?,
            out: self.output(node)?.shared(Share::Columns(attrs.value_head_dim)),
            state: self.state_output(attrs.state, self.by_head(attrs.state)),
        }))
    }

    pub(super) fn ssm_scan(&self, node: &Node, attrs: &SsmScanAttrs) -> Compiled {
        let (columns, elems) = match attrs.decay_of {
            DecayOf::Head => (Share::Columns(attrs.head_dim), self.by_head(attrs.state)),
            DecayOf::Element => {
                let channels = ssm_scan::CHUNK_CHANNELS;
                (Share::Columns(channels), Share::Columns(channels * attrs.state_size))
            }
        };
        Ok(Box::new(SsmScan {
            attrs: attrs.clone(),
            xbc: self.input(node, 0)?,
            dt: self.input(node, 1)?,
            out: self.output(node)?.shared(columns),
            state: self.state_output(attrs.state, elems),
            a: self.vector(attrs.a)?,
            d: self.vector(attrs.d)?,
            dt_bias: self.vector(attrs.dt_bias)?,
        }))
    }
}
