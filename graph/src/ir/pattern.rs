//! Launch patterns: which runs of nodes a backend can execute as one launch.
//!
//! Nodes are never rewritten into other nodes: a pattern only says that consecutive production nodes belong together,
//! in one phase or several. Taps do not count when a run is matched.

use super::graph::{Graph, Node};

/// One place in a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatternStep {
    /// The op's stem.
    pub stem: &'static str,
    /// The node's name, where the stem alone is not enough.
    pub name: Option<&'static str>,
    /// May be absent.
    pub optional: bool,
}

/// A node with this op.
#[must_use]
pub const fn op(stem: &'static str) -> PatternStep {
    PatternStep { stem, name: None, optional: false }
}

/// A node with this op and name.
#[must_use]
pub const fn named(stem: &'static str, name: &'static str) -> PatternStep {
    PatternStep { stem, name: Some(name), optional: false }
}

/// A node that may be there.
#[must_use]
pub const fn maybe(step: PatternStep) -> PatternStep {
    PatternStep { optional: true, ..step }
}

/// A group of nodes that a backend has one launch for.
#[derive(Debug, Clone, Copy)]
pub struct LaunchPattern {
    /// What dumps, profiles and errors call it.
    pub name: &'static str,
    /// The nodes, in execution order, by phase. A value that crosses phases gets a buffer.
    pub phases: &'static [&'static [PatternStep]],
    /// A last look at the matched nodes: formats, sizes, how they are connected.
    pub accepts: fn(&Graph, &[&Node]) -> bool,
}

impl LaunchPattern {
    /// A pattern that accepts whatever its steps match.
    #[must_use]
    pub const fn new(name: &'static str, phases: &'static [&'static [PatternStep]]) -> LaunchPattern {
        LaunchPattern { name, phases, accepts: |_, _| true }
    }

    /// The nodes that the pattern takes from the head of `nodes` (taps left out), by phase; `None` if it does not fit or
    /// takes nothing. All of them belong to one layer. An optional step takes a node that fits it, always: there is no
    /// going back for a later step's sake.
    #[must_use]
    pub fn matches<'g>(&self, graph: &Graph, nodes: &[&'g Node]) -> Option<Vec<Vec<&'g Node>>> {
        let layer = nodes.first()?.layer;
        let mut rest = nodes.iter().copied().peekable();
        let mut phases = Vec::with_capacity(self.phases.len());
        for steps in self.phases {
            let mut phase = Vec::with_capacity(steps.len());
            for step in *steps {
                let fits = |n: &Node| {
                    n.layer == layer
                        && n.op.stem() == step.stem
                        && step.name.is_none_or(|name| name == n.name)
                };
                match rest.peek() {
                    Some(node) if fits(node) => phase.extend(rest.next()),
                    _ if step.optional => {}
                    _ => return None,
                }
            }
            phases.push(phase);
        }
        let all: Vec<&Node> = phases.iter().flatten().copied().collect();
        (!all.is_empty() && (self.accepts)(graph, &all)).then_some(phases)
    }
}
