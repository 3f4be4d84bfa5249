//! The launches of hyper-connections, of compressed attention, and of experts that a table gives.

use super::{Compiler, Work};
use crate::ops::attention::TASK_HEADS;
use crate::ops::compress::{CHUNK_CHANNELS, Compress};
use crate::ops::compressed_attention::CompressedAttention;
use crate::ops::hyper::{HyperConnect, HyperGates};
use crate::share::Share;
use moe_run_graph::ir::{CompressAttrs, CompressedAttentionAttrs, GivenExpertsAttrs, HyperGatesAttrs, Node};
use moe_run_runtime::error::BackendError;

type Compiled = Result<Box<dyn Work>, BackendError>;

impl Compiler<'_> {
    pub(super) fn hyper_gates(&self, node: &Node, attrs: &HyperGatesAttrs) -> Compiled {
        let out = |i: usize| node.outputs.get(i).and_then(|value| self.maybe(*value));
        Ok(Box::new(HyperGates {
            attrs: attrs.clone(),
            w: self.input(node, 0)?,
            scale: self.vector(attrs.scale)?,
            base: self.vector(attrs.base)?,
            outputs: [out(0), out(1), out(2)],
        }))
    }

    pub(super) fn hyper_connect(&self, node: &Node, streams: usize) -> Compiled {
        let width = self.input(node, 1)?.width();
        Ok(Box::new(HyperConnect {
            x: self.input(node, 0)?,
            y: self.input(node, 1)?,
            post: self.input(node, 2)?,
            comb: self.input(node, 3)?,
            out: self.output(node)?.shared(Share::Tiles { rows: 1, columns: width }),
            streams,
        }))
    }

    pub(super) fn compress(&self, node: &Node, attrs: &CompressAttrs) -> Compiled {
        let elems = CHUNK_CHANNELS * 2 * attrs.slots();
        Ok(Box::new(Compress {
            attrs: attrs.clone(),
            a: self.input(node, 0)?,
            b: self.input(node, 1)?,
            bias: self.vector(attrs.bias)?,
            out: self.output(node)?.shared(Share::Columns(CHUNK_CHANNELS)),
            state: self.state_output(attrs.state, Share::Columns(elems)),
        }))
    }

    pub(super) fn compressed_attention(&self, node: &Node, attrs: &CompressedAttentionAttrs) -> Compiled {
        let columns = TASK_HEADS.min(attrs.num_attention_heads) * attrs.head_dim;
        Ok(Box::new(CompressedAttention {
            attrs: attrs.clone(),
            sinks: self.opt_vector(attrs.sinks)?,
            q: self.input(node, 0)?,
            key: self.state_input(node, node.inputs[1])?,
            entry: self.state_input(node, node.inputs[2])?,
            mask: attrs.masked.then(|| self.input(node, 5)).transpose()?,
            out: self.output(node)?.shared(Share::Tiles { rows: 1, columns }),
        }))
    }

    /// The first K ids of each token of the vocabulary, where a table has them.
    pub(super) fn ids_of_tokens(
        &self,
        attrs: &GivenExpertsAttrs,
    ) -> Result<Option<Box<[u32]>>, BackendError> {
        let Some(table) = attrs.table else { return Ok(None) };
        let width = self.plan.graph.weight(table).shape.last().copied().unwrap_or(1).max(1);
        let (k, last) = (attrs.num_experts_per_tok, (attrs.num_experts * attrs.divisor) as u32 - 1);
        let words = self.vector(table)?;
        let rows = words.chunks_exact(width).flat_map(|row| &row[..k]);
        Ok(Some(rows.map(|word| word.to_bits().min(last)).collect()))
    }
}
