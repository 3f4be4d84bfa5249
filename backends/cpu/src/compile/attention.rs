//! What attention's launches are made of: heads that are normed and rotated, the cache, attention itself.

use super::{Compiler, Work};
use crate::ops::attention::Attention;
use crate::ops::kv_write::{self, Cache, Heads};
use crate::share::{Input, Share};
use moe_run_graph::ir::{Node, Op, OpKind, StateId};
use moe_run_runtime::error::BackendError;

impl Compiler<'_> {
    pub(super) fn heads(&self, norm: Option<&Node>, rope: &Node) -> Result<Heads, BackendError> {
        let share = Share::Rows(kv_write::CHUNK_TOKENS);
        let Op::Rope { table, pairing, heads } = rope.op else {
            return Err(BackendError::mismatch(rope.op.stem()));
        };
        let width = self.plan.graph.value(rope.outputs[0]).shape.fixed_elems();
        let norm = match norm {
            Some(node) => {
                let norm = self.norm(node)?;
                Some((norm.weight, norm.eps, norm.out.map(|out| out.shared(share))))
            }
            None => None,
        };
        let out = self.maybe(rope.outputs[0]).map(|out| out.shared(share));
        Ok(Heads { head_dim: width / heads, norm, rope: Some((table.index(), pairing)), out })
    }

    pub(super) fn attention(
        &mut self,
        node: &Node,
        q: Input,
        fresh: Option<(Heads, Cache)>,
    ) -> Result<Box<dyn Work>, BackendError> {
        let Op::Attention(attrs) = &node.op else { return Err(BackendError::mismatch(node.op.stem())) };
        self.needs.attention = self.needs.attention.with(attrs);
        Ok(Box::new(Attention {
            attrs: attrs.clone(),
            sinks: self.opt_vector(attrs.sinks)?,
            mask: self.mask(node, attrs, 5)?,
            q,
            out: self.output(node)?,
            key: self.state(node, node.inputs[1])?,
            value: self.state(node, node.inputs[2])?,
            fresh,
        }))
    }

    /// What goes into the cache and where, shared as [`KvWrite`] does.
    pub(super) fn cache(
        &self,
        write: &Node,
        k: Input,
        heads: Heads,
        key: StateId,
        value: Option<StateId>,
    ) -> Result<Cache, BackendError> {
        let state = |id| self.state_output(id, Share::Rows(kv_write::CHUNK_TOKENS));
        let value = match value {
            Some(value) => Some((self.input(write, 1)?, state(value))),
            None => None,
        };
        Ok(Cache { k, heads, key: state(key), value })
    }

    /// The nodes of ROPE_KV and ATTENTION_STEP: q and what happens to it, and the cache.
    pub(super) fn rotated(&self, nodes: &[&Node]) -> Result<(Input, Heads, Cache), BackendError> {
        let ropes: Vec<&Node> = nodes.iter().copied().filter(|n| n.op.kind() == OpKind::Rope).collect();
        let norms: Vec<&Node> = nodes.iter().copied().filter(|n| n.op.kind() == OpKind::RmsNorm).collect();
        let write = nodes.iter().copied().find(|n| n.op.kind() == OpKind::KvWrite);
        let ([q_rope, k_rope], Some(write)) = (ropes.as_slice(), write) else {
            return Err(BackendError::mismatch("rotations into the cache"));
        };
        let Op::KvWrite { key, value } = write.op else {
            return Err(BackendError::mismatch(write.op.stem()));
        };
        let q = self.input(norms.first().unwrap_or(q_rope), 0)?;
        let k = self.input(norms.get(1).unwrap_or(k_rope), 0)?;
        let heads = self.heads(norms.get(1).copied(), k_rope)?;
        let cache = self.cache(write, k, heads, key, value)?;
        Ok((q, self.heads(norms.first().copied(), q_rope)?, cache))
    }
}
