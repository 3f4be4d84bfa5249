//! Takes a layer's routed experts out of a graph, so that several devices compute them, each those that it holds.
//!
//! Input: a lowered graph. Output: the graph without those experts ([`Trunk`]): what they give for each chosen expert, `[T, K, D]`, is
//! a boundary input, which all layers of one shape share, since each reads it before the next needs it; and for each device a
//! graph of its experts alone ([`experts_of`]), one row for each pair of a token and an expert, that is `[N, 1, D]`. The sum over
//! a token's experts stays where it is defined, in ExpertCombine, in its order: so the bits are those of one device, and what
//! crosses is K rows a token in place of one. Deliberately absent: which device holds which expert.

use crate::ir::{
    DType, Dim, Graph, LayerIdx, Node, NodeId, Op, OpKind, Shape, Stage, ValueId, WeightId, WeightSlice,
};
use crate::verify::GraphError;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A layer's routed experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertPart {
    /// Whose.
    pub layer: LayerIdx,
    /// E.
    pub num_experts: usize,
    /// K.
    pub per_token: usize,
    /// What they read, `[T, D]`.
    pub x: ValueId,
    /// Which are chosen, `[T, K]`.
    pub ids: ValueId,
    /// What each gives, `[T, K, D]`.
    pub y: ValueId,
    /// Their nodes, in the order of execution.
    pub nodes: Vec<NodeId>,
    /// Taps on what they make.
    pub taps: Vec<NodeId>,
}

/// The parts of a graph that can be split: experts that a router chose, whose nodes read one value and give one.
#[must_use]
pub fn expert_parts(graph: &Graph) -> Vec<ExpertPart> {
    let routers = graph.nodes.iter().filter_map(|node| match (&node.op, node.layer, node.outputs.first()) {
        (Op::Router(attrs), Some(layer), Some(ids)) => Some((attrs, layer, *ids)),
        _ => None,
    });
    let parts = routers.filter_map(|(attrs, layer, ids)| {
        part(graph, layer, ids, attrs.num_experts, attrs.num_experts_per_tok)
    });
    parts.collect()
}

fn part(
    graph: &Graph,
    layer: LayerIdx,
    ids: ValueId,
    num_experts: usize,
    per_token: usize,
) -> Option<ExpertPart> {
    let (mut nodes, mut made) = (Vec::<&Node>::new(), HashSet::<ValueId>::new());
    for node in graph.nodes.iter().filter(|node| node.layer == Some(layer)) {
        // An operation on each element may stand between two products; anything else ends the part.
        let is_between = match node.op.kind() {
            OpKind::GatedAct | OpKind::Pointwise | OpKind::Add | OpKind::Mul => true,
            OpKind::Embed
            | OpKind::RmsNorm
            | OpKind::LayerNorm
            | OpKind::MatMul
            | OpKind::HeadMatMul
            | OpKind::Rope
            | OpKind::PositionScale
            | OpKind::KvWrite
            | OpKind::Attention
            | OpKind::AttentionScores
            | OpKind::AttentionSoftmax
            | OpKind::IndexScores
            | OpKind::IndexSelect
            | OpKind::Router
            | OpKind::GivenExperts
            | OpKind::ExpertMatMul
            | OpKind::ExpertCombine
            | OpKind::CausalConv
            | OpKind::DeltaGates
            | OpKind::DeltaRule
            | OpKind::SsmScan
            | OpKind::HyperGates
            | OpKind::HyperConnect
            | OpKind::Compress
            | OpKind::CompressedAttention
            | OpKind::MulHeads
            | OpKind::Concat
            | OpKind::Slice
            | OpKind::GetRows
            | OpKind::Tap => false,
        };
        let is_inside = if let Op::ExpertMatMul { weight, bias: _ } = &node.op {
            let stored = graph.weight(weight.tensor).shape.first().copied();
            let is_whole = weight.experts.as_ref().is_none_or(|e| *e == (0..num_experts));
            node.inputs.get(1) == Some(&ids) && stored == Some(num_experts) && is_whole
        } else {
            is_between && node.inputs.iter().all(|value| made.contains(value))
        };
        if is_inside {
            made.extend(&node.outputs);
            nodes.push(node);
        }
    }
    let outside: HashSet<ValueId> = nodes
        .iter()
        .flat_map(|node| node.inputs.iter().copied())
        .filter(|value| !made.contains(value) && *value != ids)
        .collect();
    let is_in: HashSet<NodeId> = nodes.iter().map(|node| node.id).collect();
    let readers = graph.nodes.iter().filter(|node| !is_in.contains(&node.id));
    let (taps, readers): (Vec<&Node>, Vec<&Node>) =
        readers.partition(|node| matches!(node.op, Op::Tap { .. }));
    let given: HashSet<ValueId> =
        readers.iter().flat_map(|node| node.inputs.iter().copied()).filter(|v| made.contains(v)).collect();
    let one = |values: &HashSet<ValueId>| match values.iter().collect::<Vec<_>>()[..] {
        [value] => Some(*value),
        _ => None,
    };
    let (x, y) = (one(&outside)?, one(&given)?);
    let is_rows = |value: ValueId, dims: usize| {
        let value = graph.value(value);
        value.dtype == DType::F32 && value.shape.0.len() == dims && value.shape.0[0] == Dim::Tokens
    };
    // A tap of several values, some of which are made elsewhere, is none of these.
    let own = |tap: &Node| matches!(tap.inputs[..], [value] if made.contains(&value));
    let partly = taps.iter().any(|tap| tap.inputs.iter().any(|v| made.contains(v)) && !own(tap));
    if !is_rows(x, 2) || !is_rows(y, 3) || graph.outputs.contains(&y) || partly {
        return None;
    }
    Some(ExpertPart {
        layer,
        num_experts,
        per_token,
        x,
        ids,
        y,
        nodes: nodes.iter().map(|node| node.id).collect(),
        taps: taps.iter().filter(|tap| own(tap)).map(|tap| tap.id).collect(),
    })
}

/// A graph whose experts are computed elsewhere.
#[derive(Debug, Clone)]
pub struct Trunk {
    /// It. Behind its own outputs come what the experts read and which they are.
    pub graph: Graph,
    /// For each part, the boundary input that holds what its experts gave.
    pub given: Vec<ValueId>,
    /// For each part, the first node that reads that.
    pub readers: Vec<NodeId>,
}

/// Takes parts out of a graph.
#[must_use]
pub fn trunk(graph: &Graph, parts: &[ExpertPart]) -> Trunk {
    let mut trunk = graph.clone();
    trunk.is_part_of_quantized = graph.is_quantized();
    let gone: HashSet<NodeId> = parts.iter().flat_map(|p| p.nodes.iter().chain(&p.taps)).copied().collect();
    trunk.nodes.retain(|node| !gone.contains(&node.id));
    let mut shared: Vec<(Shape, ValueId)> = Vec::new();
    let mut given = Vec::new();
    for part in parts {
        let shape = &graph.value(part.y).shape;
        let known = shared.iter().find(|(known, _)| known == shape).map(|(_, id)| *id);
        let id = known.unwrap_or_else(|| {
            let id = trunk.add_boundary(shape.clone(), DType::F32);
            shared.push((shape.clone(), id));
            id
        });
        given.push(id);
        for value in [part.x, part.ids] {
            if !trunk.outputs.contains(&value) && graph.value(value).producer.is_some() {
                trunk.outputs.push(value);
            }
        }
    }
    let by_y: HashMap<ValueId, ValueId> = parts.iter().zip(&given).map(|(p, id)| (p.y, *id)).collect();
    let mut readers = HashMap::new();
    for node in &mut trunk.nodes {
        for input in &mut node.inputs {
            if let Some(id) = by_y.get(input) {
                readers.entry(*input).or_insert(node.id);
                *input = *id;
            }
        }
    }
    let readers = parts.iter().map(|part| readers[&part.y]).collect();
    Trunk { graph: trunk, given, readers }
}

/// A stage inside of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertTap {
    /// The tap, by its node in the whole graph.
    pub node: NodeId,
    /// Its stage.
    pub stage: Stage,
    /// Which output of a device's graph it is.
    pub output: usize,
}

/// What a device's graph has of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOutputs {
    /// What the experts read: a boundary input `[N, D]`.
    pub x: ValueId,
    /// Which expert each row is for, as this device numbers them: a boundary input `[N, 1]`.
    pub ids: ValueId,
    /// Its nodes here: the launches that hold any of them are the part's.
    pub nodes: Vec<NodeId>,
    /// What they give, `[N, 1, D]`: which output.
    pub y: usize,
    /// What taps of the part show, in their order.
    pub taps: Vec<ExpertTap>,
}

/// The experts of one device.
#[derive(Debug, Clone)]
pub struct DeviceExperts {
    /// Their graph. Names, layers and tensors are the whole graph's; ids are its own.
    pub graph: Graph,
    /// By part; `None` where the device has no expert of it.
    pub parts: Vec<Option<PartOutputs>>,
}

/// The graph of a device that holds `held[p]` experts of part p: the number that its tensors have. `taps` says which taps are kept.
///
/// # Errors
/// [`GraphError`] where the nodes do not fit rows of one expert each: a defect of [`expert_parts`].
pub fn experts_of(
    graph: &Graph,
    parts: &[ExpertPart],
    held: &[usize],
    taps: &dyn Fn(Stage, Option<usize>) -> bool,
) -> Result<DeviceExperts, GraphError> {
    let mut own = Graph::new();
    own.num_layers = graph.num_layers;
    own.is_part_of_quantized = graph.is_quantized();
    let ids = own.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(1)]), DType::U32);
    let mut inputs: Vec<(Shape, ValueId)> = Vec::new();
    let mut weights: BTreeMap<WeightId, WeightId> = BTreeMap::new();
    let mut of_parts = Vec::new();
    for (part, held) in parts.iter().zip(held) {
        if *held == 0 {
            of_parts.push(None);
            continue;
        }
        let shape = &graph.value(part.x).shape;
        let known = inputs.iter().find(|(known, _)| known == shape).map(|(_, id)| *id);
        let x = known.unwrap_or_else(|| {
            let id = own.add_boundary(shape.clone(), DType::F32);
            inputs.push((shape.clone(), id));
            id
        });
        let mut values = HashMap::from([(part.x, x), (part.ids, ids)]);
        let mut nodes = Vec::new();
        for node in part.nodes.iter().filter_map(|id| graph.node(*id)) {
            let mut op = node.op.clone();
            op.for_each_id(
                &mut |weight| {
                    let model = *weight;
                    *weight = *weights.entry(model).or_insert_with(|| {
                        let decl = graph.weight(model);
                        let mut shape = decl.shape.clone();
                        if let Some(experts) = shape.first_mut() {
                            *experts = *held;
                        }
                        own.add_weight(decl.name.clone(), shape, decl.format)
                    });
                },
                &mut |_| {},
            );
            if let Op::ExpertMatMul { weight: WeightSlice { experts, .. }, bias: _ } = &mut op {
                *experts = experts.as_ref().map(|_| 0..*held);
            }
            let operands: Vec<ValueId> =
                node.inputs.iter().map(|value| values.get(value).copied().unwrap_or(x)).collect();
            let made = own.push(node.layer, node.name, op, &operands)?;
            nodes.extend(own.nodes.last().map(|node| node.id));
            values.extend(node.outputs.iter().copied().zip(made));
        }
        let mut output = |value: ValueId| {
            let value = values.get(&value).copied().unwrap_or(x);
            let at = own.outputs.iter().position(|output| *output == value);
            at.unwrap_or_else(|| {
                own.outputs.push(value);
                own.outputs.len() - 1
            })
        };
        let y = output(part.y);
        let kept = part.taps.iter().filter_map(|id| graph.node(*id)).filter_map(|node| {
            let stage = node.op.tapped()?;
            let layer = node.layer.map(|layer| layer.index());
            taps(stage, layer).then(|| (node.id, stage, node.inputs[0]))
        });
        let taps =
            kept.map(|(node, stage, value)| ExpertTap { node, stage, output: output(value) }).collect();
        of_parts.push(Some(PartOutputs { x, ids, nodes, y, taps }));
    }
    Ok(DeviceExperts { graph: own, parts: of_parts })
}
