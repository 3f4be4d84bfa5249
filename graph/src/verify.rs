//! The rules that a graph must obey, run after lowering and after every pass.
//!
//! A rule has a name; a violation names the rule, the node, what was wanted and what was found.

use crate::ir::graph::Graph;
use crate::ir::{Op, ValueId, infer};
use std::collections::HashSet;

/// A graph that breaks a rule. Lowering a sound file never makes one: it is a defect of lowering, of a pass, or a file
/// whose shapes disagree with its metadata.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// Operands that do not fit the op.
    #[error(
        "{node} ({op}): wanted {wanted}, found {found}; check the file's metadata against its tensors with `moe-run inspect`"
    )]
    Operands {
        /// The node's path.
        node: String,
        /// The op's stem.
        op: &'static str,
        /// What the op needs.
        wanted: String,
        /// What it was given.
        found: String,
    },
    /// A structural rule broken.
    #[error("rule {rule} broken after {after} at {node}: {detail}")]
    Rule {
        /// The rule's name.
        rule: &'static str,
        /// The pass after which it was found.
        after: &'static str,
        /// The node's path.
        node: String,
        /// What is wrong.
        detail: String,
    },
}

/// Checks every rule.
///
/// Rules: `ids-ascend` (nodes in id order, so that lookup by id works), `defined-before-use`, `one-producer`,
/// `shapes-agree` (stored shapes are what inference gives), `taps-unique` (a stage of a layer is tapped once),
/// `outputs-exist`.
///
/// # Errors
/// The first rule that is broken.
pub fn verify(graph: &Graph, after: &'static str) -> Result<(), GraphError> {
    let broken = |rule, node: &crate::ir::Node, detail: String| GraphError::Rule {
        rule,
        after,
        node: node.path(),
        detail,
    };
    let inputs = &graph.inputs;
    let mut defined: HashSet<ValueId> =
        [inputs.tokens, inputs.positions, inputs.sequence, inputs.kv_slots, inputs.logits_rows].into();
    defined.extend(&graph.boundary);
    let mut tapped = HashSet::new();
    let mut last = None;
    for node in &graph.nodes {
        if last.is_some_and(|l| l >= node.id) {
            return Err(broken("ids-ascend", node, format!("{} follows a later id", node.id)));
        }
        last = Some(node.id);
        if let Some(input) = node.inputs.iter().find(|v| !defined.contains(v)) {
            return Err(broken("defined-before-use", node, format!("{input} has not been computed")));
        }
        let inferred = infer::infer(graph, node)?;
        if inferred.len() != node.outputs.len() {
            return Err(broken(
                "shapes-agree",
                node,
                format!("{} results, not {}", node.outputs.len(), inferred.len()),
            ));
        }
        for (id, wanted) in node.outputs.iter().zip(&inferred) {
            let value = graph.value(*id);
            if !defined.insert(*id) || value.producer != Some(node.id) {
                return Err(broken("one-producer", node, format!("{id} is made twice")));
            }
            if value.shape != wanted.shape || value.dtype != wanted.dtype || value.state != wanted.state {
                return Err(broken(
                    "shapes-agree",
                    node,
                    format!("{id} is {}, not {}", value.shape, wanted.shape),
                ));
            }
        }
        if let Op::Tap { stage } = node.op
            && !tapped.insert((stage, node.layer))
        {
            return Err(broken("taps-unique", node, format!("{stage} is tapped twice")));
        }
    }
    for output in &graph.outputs {
        if !defined.contains(output) {
            return Err(GraphError::Rule {
                rule: "outputs-exist",
                after,
                node: "graph".into(),
                detail: format!("output {output} has no producer"),
            });
        }
    }
    Ok(())
}
