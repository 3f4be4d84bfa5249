//! Launch patterns: which nodes a backend can execute as one launch.
//!
//! Nodes are never rewritten into other nodes: a pattern only says, from an anchor, which production nodes belong together
//! by what flows between them. Neither the order in which independent nodes stand nor what nodes are called matters; taps
//! and what feeds only taps are not seen. The fusions themselves are in `groups/`, one file each.

use super::graph::{Graph, Node, NodeId, ValueId};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// Some nodes of a graph and what flows between them, as patterns look at them: what a group has taken is not seen again.
pub struct Matcher<'g> {
    graph: &'g Graph,
    free: HashSet<NodeId>,
    readers: HashMap<ValueId, Vec<&'g Node>>,
}

impl<'g> Matcher<'g> {
    /// Over the nodes that may be grouped.
    pub fn new(graph: &'g Graph, nodes: impl IntoIterator<Item = &'g Node>) -> Matcher<'g> {
        let mut matcher = Matcher { graph, free: HashSet::new(), readers: HashMap::new() };
        for node in nodes {
            matcher.free.insert(node.id);
            let mut inputs = node.inputs.clone();
            inputs.sort_unstable();
            inputs.dedup();
            for input in inputs {
                matcher.readers.entry(input).or_default().push(node);
            }
        }
        matcher
    }

    /// The whole graph: for shapes, and for who reads a value beyond what may be grouped.
    #[must_use]
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// Whether no group has taken a node, and one may.
    #[must_use]
    pub fn is_free(&self, node: &Node) -> bool {
        self.free.contains(&node.id)
    }

    /// Takes the nodes of a group.
    pub fn take(&mut self, nodes: &[NodeId]) {
        for node in nodes {
            self.free.remove(node);
        }
    }

    /// The free node that makes a value.
    #[must_use]
    pub fn producer(&self, value: ValueId) -> Option<&'g Node> {
        let id = self.graph.value(value).producer.filter(|id| self.free.contains(id))?;
        self.graph.node(id)
    }

    /// The free nodes that read a value.
    pub fn readers(&self, value: ValueId) -> impl Iterator<Item = &'g Node> {
        let all = self.readers.get(&value).map_or(&[][..], Vec::as_slice);
        all.iter().copied().filter(|node| self.is_free(node))
    }

    /// How many nodes read a value, free or not, taps aside.
    #[must_use]
    pub fn reader_count(&self, value: ValueId) -> usize {
        self.readers.get(&value).map_or(0, Vec::len)
    }
}

/// A fusion: nodes that some backend has one launch for, taken apart into what a kernel needs to know, every attribute of
/// theirs included. A backend says whether it can (`fits`) by taking the struct apart without `..`.
pub trait Group: Sized {
    /// What dumps, profiles, errors and files call it, in every backend.
    const NAME: &'static str;

    /// The groups that an anchor belongs to, best first: those behind the first are for backends that cannot have it all.
    /// They hold nothing but free nodes.
    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<Self>;

    /// The nodes, in any order.
    fn nodes(&self) -> Vec<NodeId>;
}

/// The group that exactly these nodes are.
#[must_use]
pub fn group_of<G: Group>(graph: &Graph, nodes: &[&Node]) -> Option<G> {
    let matcher = Matcher::new(graph, nodes.iter().copied());
    let sorted = |mut ids: Vec<NodeId>| {
        ids.sort_unstable();
        ids
    };
    let wanted = sorted(nodes.iter().map(|n| n.id).collect());
    let found = |anchor: &&Node| {
        G::candidates(&matcher, anchor).into_iter().find(|group| sorted(group.nodes()) == wanted)
    };
    nodes.iter().find_map(found)
}

/// The nodes of every group that a pattern finds from an anchor, best first.
type Find = dyn Fn(&Matcher<'_>, &Node) -> Vec<Vec<NodeId>> + Send + Sync;

/// A group of nodes that a backend has one launch for.
#[derive(Clone)]
pub struct LaunchPattern {
    /// What dumps, profiles and errors call it.
    pub name: &'static str,
    find: Arc<Find>,
}

impl LaunchPattern {
    /// The groups of a kind that fit what a backend can do.
    #[must_use]
    pub fn new<G: Group>(fits: impl Fn(&Graph, &G) -> bool + Send + Sync + 'static) -> LaunchPattern {
        LaunchPattern::from_fn(G::NAME, move |matcher, anchor| {
            let mut found = G::candidates(matcher, anchor);
            found.retain(|group| fits(matcher.graph(), group));
            found.iter().map(Group::nodes).collect()
        })
    }

    /// The groups that a function finds from an anchor, best first, where no struct is needed of them.
    #[must_use]
    pub fn from_fn(
        name: &'static str,
        find: impl Fn(&Matcher<'_>, &Node) -> Vec<Vec<NodeId>> + Send + Sync + 'static,
    ) -> LaunchPattern {
        LaunchPattern { name, find: Arc::new(find) }
    }

    /// The nodes of every group that an anchor belongs to, best first.
    #[must_use]
    pub fn find(&self, matcher: &Matcher<'_>, anchor: &Node) -> Vec<Vec<NodeId>> {
        (self.find)(matcher, anchor)
    }
}

impl fmt::Debug for LaunchPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LaunchPattern").field(&self.name).finish()
    }
}
