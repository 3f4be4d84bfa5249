//! Graph or Plan → [`Dump`].

use super::attributes::attributes;
use super::fold;
use super::kernel::KernelInfo;
use super::view::{
    BackendView, BufferView, CostView, Dump, KindView, LaunchView, Level, MeasuredTimes, MeasuredView,
    MemoryView, ModelView, NodeView, SCHEMA_VERSION, StateView, StepView, TapView, TotalsView, ValueView,
    WeightView,
};
use crate::config::ModelConfig;
use crate::cost::{Cost, launch_cost, lone_node_cost};
use crate::ir::{Graph, LayerIdx, Node, NodeId, Op, StepSizes, ValueId, WeightDecl};
use crate::passes::{Launch, PIPELINE, Plan};
use std::collections::HashMap;
use std::ops::Range;

/// What to dump.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// The graph as lowering made it.
    Lowered,
    /// Its nodes with their launches.
    Optimized(&'a Plan),
    /// Its launches.
    Plan(&'a Plan),
}

impl<'a> Subject<'a> {
    fn level(self) -> Level {
        match self {
            Subject::Lowered => Level::Lowered,
            Subject::Optimized(_) => Level::Optimized,
            Subject::Plan(_) => Level::Plan,
        }
    }

    fn plan(self) -> Option<&'a Plan> {
        match self {
            Subject::Lowered => None,
            Subject::Optimized(plan) | Subject::Plan(plan) => Some(plan),
        }
    }
}

/// What a dump is made from.
#[derive(Clone, Copy)]
pub struct DumpInput<'a> {
    /// The model's dimensions.
    pub config: &'a ModelConfig,
    /// The graph as lowering made it: it knows every tap.
    pub lowered: &'a Graph,
    /// What to dump.
    pub subject: Subject<'a>,
    /// The backend that the plan is for.
    pub backend: Option<&'a BackendView>,
    /// What the backend says about a launch.
    pub kernel: &'a dyn Fn(&Launch) -> Option<KernelInfo>,
    /// The step that costs are stated for.
    pub sizes: StepSizes,
    /// How the KV cache is stored.
    pub kv_type: &'a str,
    /// Bytes of a cached row of so many elements.
    pub kv_row_bytes: &'a dyn Fn(usize) -> usize,
    /// Bandwidth for roofline times.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// Only these layers, and the whole model's nodes.
    pub layers: Option<&'a Range<usize>>,
    /// Measured times of the plan's launches.
    pub measured: Option<&'a MeasuredTimes>,
}

impl DumpInput<'_> {
    fn shows(&self, layer: Option<LayerIdx>) -> bool {
        layer.is_none_or(|l| self.layers.is_none_or(|range| range.contains(&l.index())))
    }

    fn cost(&self, cost: Cost) -> CostView {
        CostView::new(cost, self.bandwidth_bytes_per_s)
    }

    pub(super) fn measured(&self, launches: &[u32], cost: Cost) -> Option<MeasuredView> {
        let times = self.measured?;
        let of = |id: &u32| times.launch_seconds.get(*id as usize).copied().unwrap_or_default();
        let seconds: f64 = launches.iter().map(of).sum();
        let all: f64 = times.launch_seconds.iter().sum();
        // A device whose clock is too coarse to see the launch gives 0: a rate would say nothing.
        let per = |x: f64, y: f64| if y > 0.0 { x / y } else { 0.0 };
        Some(MeasuredView {
            seconds,
            share: per(seconds, all),
            bandwidth_bytes_per_s: per(cost.bytes() as f64, seconds),
            roofline_share: self.bandwidth_bytes_per_s.map(|b| per(cost.seconds_at(b), seconds)),
        })
    }
}

/// Makes the dump.
#[must_use]
pub fn dump(input: &DumpInput<'_>) -> Dump {
    let plan = input.subject.plan();
    let graph = plan.map_or(input.lowered, |p| &p.graph);
    let nodes = nodes(input, graph, plan);
    let launches: Vec<LaunchView> = plan.map_or_else(Vec::new, |p| launches(input, p));
    let taps = taps(input, graph, plan);
    let groups = fold::layer_groups(input, graph, &nodes, &launches, &taps);
    let (kinds, total) = kinds(input, &nodes, &launches);
    let all: Vec<u32> = launches.iter().map(|l| l.id).collect();
    let weight_bytes = |w: &WeightDecl| {
        let (cols, rows) = w.shape.split_last().map_or((0, 1), |(c, r)| (*c, r.iter().product::<usize>()));
        (w.format.row_bytes(cols).unwrap_or(0) * rows) as u64
    };
    let is_plan = input.subject.level() == Level::Plan;
    Dump {
        schema_version: SCHEMA_VERSION,
        generator: concat!("moe-run ", env!("CARGO_PKG_VERSION")).to_owned(),
        level: input.subject.level(),
        passes: if plan.is_some() { PIPELINE.to_vec() } else { Vec::new() },
        model: ModelView {
            architecture: input.config.architecture.clone(),
            name: input.config.name.clone(),
            num_hidden_layers: input.config.num_hidden_layers,
            hidden_size: input.config.hidden_size,
            vocab_size: input.config.vocab_size,
            weight_bytes: graph.weights.iter().map(weight_bytes).sum(),
            left_out: graph.left_out.clone(),
        },
        backend: input.backend.cloned(),
        step: StepView { sizes: input.sizes, kv_type: input.kv_type.to_owned() },
        bandwidth_bytes_per_s: input.bandwidth_bytes_per_s,
        profiled_steps: input.measured.map(|m| m.steps),
        totals: TotalsView {
            nodes: nodes.len(),
            taps: taps.iter().filter(|t| t.kept).count(),
            launches: launches.len(),
            cost: input.cost(total),
            measured: input.measured(&all, total),
        },
        layer_groups: groups,
        values: values(input, graph, plan.filter(|_| is_plan), &nodes, &taps),
        weights: graph
            .weights
            .iter()
            .filter(|w| nodes.iter().any(|n| n.weights.contains(&w.id.0)))
            .map(|w| WeightView {
                id: w.id.0,
                name: w.name.clone(),
                shape: w.shape.clone(),
                format: w.format.name(),
                size_bytes: weight_bytes(w),
            })
            .collect(),
        states: graph
            .states
            .iter()
            .filter(|s| input.shows(Some(s.layer)))
            .map(|s| StateView {
                id: s.id.0,
                role: s.role,
                layer: s.layer.index(),
                heads: s.heads,
                width: s.width,
                window: s.window(),
            })
            .collect(),
        memory: plan.filter(|_| is_plan).map(|p| MemoryView {
            arena_bytes: p.memory.arena_bytes,
            naive_bytes: p.memory.naive_bytes,
            slots: p.memory.slots.len(),
        }),
        kinds,
        nodes,
        taps,
        launches,
    }
}

fn nodes(input: &DumpInput<'_>, graph: &Graph, plan: Option<&Plan>) -> Vec<NodeView> {
    let mut is_read = vec![false; graph.values.len()];
    for value in graph.nodes.iter().flat_map(|n| &n.inputs).chain(&graph.outputs) {
        is_read[value.index()] = true;
    }
    let launches = plan.iter().flat_map(|p| &p.launches);
    let place: HashMap<NodeId, u32> = launches.flat_map(|l| l.nodes.iter().map(|id| (*id, l.id.0))).collect();
    let feeds_outputs = graph.feeds_outputs();
    let shown = graph.nodes.iter().zip(&feeds_outputs);
    shown
        .filter(|(node, _)| input.shows(node.layer) && !is_tap(node))
        .map(|(node, production)| NodeView {
            id: node.id.0,
            path: node.path(),
            name: node.name,
            op: node.op.stem(),
            layer: node.layer.map(LayerIdx::index),
            attributes: attributes(graph, &node.op),
            inputs: node.inputs.iter().map(|v| v.0).collect(),
            outputs: node.outputs.iter().map(|v| v.0).collect(),
            weights: node.op.weights().iter().map(|w| w.0).collect(),
            states: states_of(graph, node),
            production: *production,
            launch: place.get(&node.id).copied(),
            phase: place.get(&node.id).map(|_| 0),
            cost: input
                .cost(lone_node_cost(graph, node, input.sizes, input.kv_row_bytes, |v| is_read[v.index()])),
        })
        .collect()
}

fn is_tap(node: &Node) -> bool {
    matches!(node.op, Op::Tap { .. })
}

fn states_of(graph: &Graph, node: &Node) -> Vec<u32> {
    let mut states: Vec<u32> =
        node.inputs.iter().chain(&node.outputs).filter_map(|v| graph.value(*v).state).map(|s| s.0).collect();
    states.dedup();
    states
}

/// Every tap of the lowered graph, kept or not.
fn taps(input: &DumpInput<'_>, graph: &Graph, plan: Option<&Plan>) -> Vec<TapView> {
    let feeds_outputs = input.lowered.feeds_outputs();
    let delivered: HashMap<NodeId, u32> =
        plan.iter().flat_map(|p| &p.launches).flat_map(|l| l.taps.iter().map(|t| (*t, l.id.0))).collect();
    let nodes = input.lowered.nodes.iter().zip(&feeds_outputs);
    nodes
        .filter(|(node, _)| input.shows(node.layer))
        .filter_map(|(node, production)| Some((node, node.op.tapped()?, *production)))
        .map(|(node, stage, production)| {
            let producers = node.inputs.iter().filter_map(|v| input.lowered.value(*v).producer);
            TapView {
                path: stage.path(node.layer.map(LayerIdx::index)),
                stage: stage.name(),
                layer: node.layer.map(LayerIdx::index),
                inputs: node.inputs.iter().map(|v| v.0).collect(),
                node: producers.max().filter(|id| graph.node(*id).is_some()).map(|id| id.0),
                launch: delivered.get(&node.id).copied(),
                kept: graph.node(node.id).is_some(),
                production,
            }
        })
        .collect()
}

fn launches(input: &DumpInput<'_>, plan: &Plan) -> Vec<LaunchView> {
    let is_plan = input.subject.level() == Level::Plan;
    plan.launches
        .iter()
        .filter(|l| input.shows(l.layer))
        .map(|launch| {
            let cost = launch_cost(plan, launch, input.sizes, input.kv_row_bytes);
            let inside = &launch.nodes;
            let mut reads: Vec<u32> = plan
                .launch_nodes(launch)
                .flat_map(|n| &n.inputs)
                .filter(|v| plan.graph.value(**v).producer.is_none_or(|p| !inside.contains(&p)))
                .map(|v| v.0)
                .collect();
            reads.sort_unstable();
            reads.dedup();
            let made = plan.launch_nodes(launch).flat_map(|n| &n.outputs);
            LaunchView {
                id: launch.id.0,
                kind: launch.pattern,
                layer: launch.layer.map(LayerIdx::index),
                phases: vec![launch.nodes.iter().map(|n| n.0).collect()],
                taps: plan.launch_taps(launch).map(|(n, _)| n.path()).collect(),
                recomputed: launch.recomputed,
                reads,
                writes: made.filter(|v| plan.is_stored(**v)).map(|v| v.0).collect(),
                kernel: if is_plan { (input.kernel)(launch) } else { None },
                cost: input.cost(cost),
                measured: input.measured(&[launch.id.0], cost),
            }
        })
        .collect()
}

/// Costs by kind of launch (or of op), the dearest first, and their sum.
fn kinds(input: &DumpInput<'_>, nodes: &[NodeView], launches: &[LaunchView]) -> (Vec<KindView>, Cost) {
    let single: Vec<(&'static str, Cost, Option<u32>)> = if launches.is_empty() {
        nodes.iter().map(|n| (n.op, n.cost.cost, None)).collect()
    } else {
        launches.iter().map(|l| (l.kind, l.cost.cost, Some(l.id))).collect()
    };
    let mut by_kind: Vec<(&'static str, Cost, usize, Vec<u32>)> = Vec::new();
    for (kind, cost, launch) in &single {
        let known = by_kind.iter().position(|k| k.0 == *kind);
        let at = known.unwrap_or_else(|| {
            by_kind.push((kind, Cost::default(), 0, Vec::new()));
            by_kind.len() - 1
        });
        by_kind[at].1 += *cost;
        by_kind[at].2 += 1;
        by_kind[at].3.extend(launch);
    }
    let mut kinds: Vec<KindView> = by_kind
        .into_iter()
        .map(|(kind, cost, count, ids)| KindView {
            kind,
            count,
            cost: input.cost(cost),
            measured: input.measured(&ids, cost),
        })
        .collect();
    let dearness = |k: &KindView| {
        (k.measured.map_or(0.0, |m| m.seconds), k.cost.total_bytes as f64, k.cost.cost.flops as f64)
    };
    kinds.sort_by(|a, b| dearness(b).partial_cmp(&dearness(a)).unwrap_or(std::cmp::Ordering::Equal));
    (kinds, single.iter().map(|s| s.1).sum())
}

/// The values that a shown node or tap touches.
fn values(
    input: &DumpInput<'_>,
    graph: &Graph,
    plan: Option<&Plan>,
    nodes: &[NodeView],
    taps: &[TapView],
) -> Vec<ValueView> {
    let mut shown = vec![false; graph.values.len()];
    let of_nodes = nodes.iter().flat_map(|n| n.inputs.iter().chain(&n.outputs));
    for id in of_nodes.chain(taps.iter().flat_map(|t| &t.inputs)) {
        shown[*id as usize] = true;
    }
    let values = graph.values.iter().filter(|v| shown[v.id.index()]);
    values
        .map(|value| ValueView {
            id: value.id.0,
            name: value_name(input.lowered, value.id),
            shape: value.shape.clone(),
            dtype: value.dtype,
            producer: value.producer.filter(|p| graph.node(*p).is_some()).map(|p| p.0),
            state: value.state.map(|s| s.0),
            buffer: plan.and_then(|p| p.memory.slot(value.id)).map(|s| BufferView {
                offset_bytes: s.offset_bytes,
                size_bytes: s.size_bytes,
                first_launch: s.first_launch,
                last_launch: s.last_launch,
            }),
        })
        .collect()
}

/// The producer's path, with the result's name where there are several; a step input's name.
fn value_name(graph: &Graph, id: ValueId) -> String {
    let inputs = graph.inputs;
    if let Some(node) = graph.value(id).producer.and_then(|p| graph.node(p)) {
        let results: &[&str] = match node.op {
            Op::Router(_) | Op::GivenExperts(_) => &["ids", "weights"],
            Op::GatedAct { .. } => &["act", "product"],
            Op::DeltaGates { .. } => &["beta", "decay"],
            Op::KvWrite { .. } => &["keys", "values"],
            Op::HyperGates(_) => &["pre", "post", "comb"],
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::MatMul { .. }
            | Op::HeadMatMul { .. }
            | Op::Rope { .. }
            | Op::PositionScale(_)
            | Op::Attention(_)
            | Op::AttentionScores(_)
            | Op::AttentionSoftmax(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { .. }
            | Op::ExpertMatMul { .. }
            | Op::ExpertCombine
            | Op::CausalConv(_)
            | Op::DeltaRule(_)
            | Op::SsmScan(_)
            | Op::HyperConnect { .. }
            | Op::Compress(_)
            | Op::CompressedAttention(_)
            | Op::Add
            | Op::Mul
            | Op::MulHeads
            | Op::Pointwise { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::GetRows
            | Op::Tap { .. } => &[],
        };
        let at = node.outputs.iter().position(|v| *v == id).unwrap_or_default();
        return match results.get(at) {
            Some(result) => format!("{}.{result}", node.path()),
            None => node.path(),
        };
    }
    let named = [
        (inputs.tokens, "tokens"),
        (inputs.positions, "positions"),
        (inputs.sequence, "sequence"),
        (inputs.kv_slots, "kv_slots"),
        (inputs.logits_rows, "logits_rows"),
    ];
    let name = named.iter().find(|(v, _)| *v == id).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("boundary {id}"))
}
