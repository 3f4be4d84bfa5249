//! Stage 4: Graph + what is asked for → Plan: unrequested taps dropped, nodes grouped into launches, memory planned.
//!
//! Input: the lowered graph, the requested taps, a backend's launch patterns and the sizes of the token class. Output:
//! a [`Plan`], immutable from here on. Nodes are never rewritten; [`verify`](crate::verify) runs after every pass.

mod drop_unrequested_taps;
mod group_launches;
mod plan_memory;
mod segments;
mod split_experts;
mod verify_plan;

pub use drop_unrequested_taps::{TapSelection, drop_unrequested_taps};
pub use group_launches::{Launch, LaunchId, group_launches};
pub use plan_memory::{BufferSlot, MemoryPlan, plan_memory};
pub use segments::{
    Crossing, Segment, SegmentError, crossings, cuts, merge_plans, places_by_layer, segments,
};
pub use split_experts::{
    DeviceExperts, ExpertPart, ExpertTap, PartOutputs, Trunk, expert_parts, experts_of, trunk,
};
pub use verify_plan::verify_plan;

use crate::ir::{Graph, LaunchPattern, Node, Stage, StepSizes, ValueId};
use crate::verify::{GraphError, verify};
use serde::Serialize;

/// The passes in the order in which they run.
pub const PIPELINE: &[&str] = &["drop_unrequested_taps", "group_launches", "plan_memory"];

/// What a graph is planned for.
#[derive(Clone, Copy)]
pub struct PlanOptions<'a> {
    /// Which taps stay.
    pub taps: &'a TapSelection,
    /// The backend's groups for this token class, best first. Any op not covered is a launch of its own.
    pub patterns: &'a [LaunchPattern],
    /// Nodes that no group may take, such as those whose weights a device holds in parts.
    pub alone: &'a dyn Fn(&Node) -> bool,
    /// The largest step: the class's tokens, the rows whose logits may be asked for, the context size.
    pub max_sizes: StepSizes,
}

/// [`PlanOptions::alone`] where any node may be grouped.
#[must_use]
pub fn none_alone(_: &Node) -> bool {
    false
}

/// A graph with its launches and its memory, for one token class. Immutable after compile.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The nodes that are left.
    pub graph: Graph,
    /// Launches in execution order.
    pub launches: Vec<Launch>,
    /// Where values that cross launches live.
    pub memory: MemoryPlan,
    /// The largest step that the plan holds.
    pub max_sizes: StepSizes,
}

/// Runs the pipeline.
///
/// # Errors
/// [`GraphError`] naming the rule and the pass after which it was broken.
pub fn plan(lowered: &Graph, options: &PlanOptions<'_>) -> Result<Plan, GraphError> {
    let graph = drop_unrequested_taps(lowered, options.taps);
    verify(&graph, "drop_unrequested_taps")?;
    let launches = group_launches(&graph, options.patterns, options.alone);
    let memory = plan_memory(&graph, &launches, options.max_sizes);
    let plan = Plan { graph, launches, memory, max_sizes: options.max_sizes };
    verify_plan(&plan)?;
    Ok(plan)
}

impl Plan {
    /// The launch of an id.
    #[must_use]
    pub fn launch(&self, id: LaunchId) -> &Launch {
        &self.launches[id.index()]
    }

    /// The launch that computes a value; `None` for boundary inputs and dropped nodes.
    #[must_use]
    pub fn launch_of(&self, value: ValueId) -> Option<&Launch> {
        let producer = self.graph.value(value).producer?;
        self.launches.iter().find(|l| l.nodes.contains(&producer))
    }

    /// The nodes of a launch, in execution order.
    pub fn launch_nodes<'a>(&'a self, launch: &'a Launch) -> impl Iterator<Item = &'a Node> {
        launch.nodes.iter().filter_map(|id| self.graph.node(*id))
    }

    /// The taps that are delivered after a launch: node and stage.
    pub fn launch_taps<'a>(&'a self, launch: &'a Launch) -> impl Iterator<Item = (&'a Node, Stage)> {
        launch.taps.iter().filter_map(|id| self.graph.node(*id)).filter_map(|n| n.op.tapped().map(|s| (n, s)))
    }

    /// Whether a value has a buffer: it crosses a launch or a phase, is tapped, or is an output.
    #[must_use]
    pub fn is_stored(&self, value: ValueId) -> bool {
        self.memory.slot(value).is_some()
    }
}
