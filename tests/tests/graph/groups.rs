//! Groups are found by what flows between nodes: neither their order nor their names matter; and how many launches a decode
//! layer of every architecture takes. `MulAdd` is a group of the tests, the worked example of docs/adding.md.

use crate::common::one_layer;
use moe_run_backends::{Backend, CompileOptions, KvType, registry};
use moe_run_graph::Model;
use moe_run_graph::groups::parts::Sum;
use moe_run_graph::groups::{Group, LaunchPattern, Matcher, group_of};
use moe_run_graph::ir::{DType, Dim, Graph, Node, NodeId, Op, Shape, ValueId};
use moe_run_graph::passes::{Launch, TapSelection, drop_unrequested_taps, group_launches, none_alone};
use moe_run_graph::synth::Random;
use moe_run_tests::fixtures;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// A product of two values and what is added to it: y = a · b + other.
#[derive(Debug, Clone, PartialEq)]
struct MulAdd {
    product: NodeId,
    a: ValueId,
    b: ValueId,
    /// Somebody else's value, the residual's in [`Sum`]'s words.
    add: Sum,
}

impl Group for MulAdd {
    const NAME: &'static str = "mul_add";

    fn candidates(matcher: &Matcher<'_>, anchor: &Node) -> Vec<MulAdd> {
        // The addition is the anchor: from it the product is found on either side.
        if !matcher.is_free(anchor) {
            return Vec::new();
        }
        let of = |value: ValueId| {
            let add = Sum::of(anchor, value)?;
            let product = matcher.producer(value).filter(|node| matches!(node.op, Op::Mul))?;
            let [a, b] = product.inputs[..] else { return None };
            Some(MulAdd { product: product.id, a, b, add })
        };
        anchor.inputs.iter().filter_map(|value| of(*value)).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let MulAdd { product, a: _, b: _, add } = self;
        vec![*product, add.node]
    }
}

/// What a backend of the tests can: products of different values.
fn fits(graph: &Graph, group: &MulAdd) -> bool {
    let MulAdd { product: _, a, b, add: Sum { node: _, other, y: _ } } = group;
    a != b && graph.value(*a).shape == graph.value(*other).shape
}

fn row() -> Shape {
    Shape::new(&[Dim::Tokens, Dim::Fixed(8)])
}

/// x · y + x, and y · y + x, of which the second does not fit.
fn mul_adds() -> Graph {
    let mut graph = Graph::new();
    let (x, y) = (graph.add_boundary(row(), DType::F32), graph.add_boundary(row(), DType::F32));
    for factors in [[x, y], [y, y]] {
        let product = graph.push(None, "product", Op::Mul, &factors).unwrap()[0];
        let sum = graph.push(None, "sum", Op::Add, &[x, product]).unwrap();
        graph.outputs.extend(sum);
    }
    graph
}

#[test]
fn a_group_gives_its_struct_and_launches_of_what_fits() {
    let graph = mul_adds();
    let launches = group_launches(&graph, &[LaunchPattern::new(fits)], &none_alone);
    let names: Vec<&str> = launches.iter().map(|l| l.pattern).collect();
    assert_eq!(names, ["mul_add", "mul", "add"]);
    let nodes: Vec<&Node> = launches[0].nodes.iter().map(|id| graph.node(*id).unwrap()).collect();
    let group: MulAdd = group_of(&graph, &nodes).unwrap();
    let [x, y] = graph.boundary[..] else { panic!("two inputs") };
    assert_eq!((group.a, group.b, group.add.other, group.add.y), (x, y, x, graph.outputs[0]));
    assert_eq!(group_of::<MulAdd>(&graph, &nodes[..1]), None, "half of a group is none");
    // What is to be alone is in no group.
    let alone = |node: &Node| matches!(node.op, Op::Mul);
    assert!(group_launches(&graph, &[LaunchPattern::new(fits)], &alone).iter().all(|l| l.nodes.len() == 1));
}

/// A group that would need what only comes of it is none: product → other → sum, with the product in the sum as well.
#[test]
fn a_group_that_its_own_result_leads_back_to_is_not_made() {
    let mut graph = Graph::new();
    let (x, y) = (graph.add_boundary(row(), DType::F32), graph.add_boundary(row(), DType::F32));
    let product = graph.push(None, "product", Op::Mul, &[x, y]).unwrap()[0];
    let other = graph.push(None, "other", Op::Add, &[product, y]).unwrap()[0];
    graph.outputs = graph.push(None, "sum", Op::Add, &[product, other]).unwrap();
    let launches = group_launches(&graph, &[LaunchPattern::new(fits)], &none_alone);
    let held: Vec<(&str, usize)> = launches.iter().map(|l| (l.pattern, l.nodes.len())).collect();
    assert_eq!(held, [("mul_add", 2), ("add", 1)], "the one of `other`, not the one around it");
}

/// The same graph with independent nodes in another order and every node under another name, and the old id of each node.
fn shuffled(graph: &Graph, random: &mut Random) -> (Graph, HashMap<NodeId, NodeId>) {
    let mut new = Graph::new();
    new.weights.clone_from(&graph.weights);
    new.states.clone_from(&graph.states);
    new.rope_tables.clone_from(&graph.rope_tables);
    new.num_layers = graph.num_layers;
    let own = |g: &Graph| {
        let i = g.inputs;
        [i.tokens, i.positions, i.sequence, i.kv_slots, i.logits_rows]
    };
    let mut values: HashMap<ValueId, ValueId> = own(graph).into_iter().zip(own(&new)).collect();
    for value in &graph.boundary {
        let value = graph.value(*value);
        values.insert(value.id, new.add_boundary(value.shape.clone(), value.dtype));
    }
    let mut rest: Vec<&Node> = graph.nodes.iter().collect();
    let mut old = HashMap::new();
    while !rest.is_empty() {
        let is_ready = |node: &&Node| node.inputs.iter().all(|v| values.contains_key(v));
        let ready: Vec<usize> = (0..rest.len()).filter(|i| is_ready(&rest[*i])).collect();
        let node = rest.remove(ready[(random.next_u64() % ready.len() as u64) as usize]);
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| values[v]).collect();
        let outputs = new.push(node.layer, "renamed", node.op.clone(), &inputs).unwrap();
        old.insert(new.nodes.last().unwrap().id, node.id);
        values.extend(node.outputs.iter().copied().zip(outputs));
    }
    new.outputs = graph.outputs.iter().map(|v| values[v]).collect();
    (new, old)
}

/// What each launch is and holds, whatever their order.
fn held(launches: &[Launch], id: impl Fn(NodeId) -> NodeId) -> BTreeSet<(&'static str, BTreeSet<NodeId>)> {
    launches.iter().map(|l| (l.pattern, l.nodes.iter().copied().map(&id).collect())).collect()
}

#[test]
fn order_and_names_of_nodes_change_no_group() {
    let mut random = Random::new(&[12]);
    let mut graphs = vec![("one layer".to_owned(), one_layer().lower().1)];
    for (stem, path, _) in fixtures::architecture_models() {
        graphs.push((stem.to_owned(), Model::open(&path).unwrap().graph));
    }
    let mut groups = 0;
    for (name, graph) in &graphs {
        for taps in [TapSelection::None, TapSelection::All] {
            let graph = drop_unrequested_taps(graph, &taps);
            let (other, old) = shuffled(&graph, &mut random);
            for backend in registry::all() {
                for tokens in [1, 8, 512] {
                    let patterns = backend.patterns(tokens, &CompileOptions::default());
                    let launches = |graph| group_launches(graph, &patterns, &none_alone);
                    let (wanted, found) = (launches(&graph), launches(&other));
                    groups += wanted.iter().filter(|l| l.nodes.len() > 1).count();
                    let case = format!("{name} on {} with {tokens} tokens", backend.name());
                    assert_eq!(held(&found, |id| old[&id]), held(&wanted, |id| id), "{case}");
                }
            }
        }
    }
    assert!(groups > 1000, "{groups} groups");
}

/// The launches of a decode layer, the most of any: no architecture takes more.
const MOST: usize = 8;

/// Those that take more, and why. One that does not is not listed.
const MORE: &[(&str, &str)] = &[
    ("bailingmoe3/", "as kimi-linear"),
    (
        "deepseek2/v2-lite-kvb",
        "files from before April 2025: the heads' k matrices are transposed, whose products latent_heads does not make",
    ),
    ("deepseek32/", "latent attention with an indexer: its keys, its scores and its choice"),
    (
        "deepseek4/",
        "streams are normed, weighed, mixed and joined around each block, and rotated ends of heads come apart and together, op by \
         op; entries of windows, and an indexer's over them",
    ),
    ("glm-dsa/", "as deepseek32"),
    (
        "gemma4/e2b-dense",
        "layers that read another's keys place their queries op by op; a further input of each layer has a gate and a norm",
    ),
    ("grovemoe/", "small experts stand behind the chosen ones: a choice, two products and a sum more"),
    ("jamba/", "what the scan takes are three products under norms of their own"),
    (
        "kimi-linear/",
        "a norm with six products, where norm_qkv has four; three convolutions with states of their own, put side by side",
    ),
    (
        "llama4/",
        "the experts' input is weighed: a choice, a product with it, a second choice, and experts whose ids are given",
    ),
    (
        "nemotron_h_moe/latent",
        "experts without a gate on a latent of their own are launches of their own: their function, and what leads into the latent \
         and out of it",
    ),
];

/// The most launches of any layer in a step of one token, and the patterns of that layer.
fn of_a_layer(backend: &dyn Backend, graph: &Graph) -> Option<(usize, Vec<&'static str>)> {
    let options = CompileOptions { kv_type: KvType::F16, ..CompileOptions::default() };
    graph.nodes.iter().try_for_each(|node| backend.supports(graph, node)).ok()?;
    let graph = drop_unrequested_taps(graph, &TapSelection::None);
    let mut layers: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
    for launch in group_launches(&graph, &backend.patterns(1, &options), &none_alone) {
        if let Some(layer) = launch.layer {
            layers.entry(layer.index()).or_default().push(launch.pattern);
        }
    }
    layers.into_values().map(|launches| (launches.len(), launches)).max_by_key(|(count, _)| *count)
}

/// `MOE_RUN_UPDATE_GOLDEN=1` writes the table anew, for the models that are here.
#[test]
fn launches_of_a_decode_layer_of_every_architecture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/launches.txt");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let mut table: BTreeMap<String, String> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (stem, counts) = line.split_once(' ').unwrap();
        table.insert(stem.to_owned(), counts.trim().to_owned());
    }
    let update = std::env::var_os("MOE_RUN_UPDATE_GOLDEN").is_some();
    let backends: Vec<_> =
        registry::all().into_iter().filter(|b| ["cuda", "wgpu"].contains(&b.name())).collect();
    let mut wrong = Vec::new();
    for (stem, model, _) in fixtures::architecture_models() {
        let graph = Model::open(&model).unwrap().graph;
        let mut counts = Vec::new();
        for backend in &backends {
            match of_a_layer(backend.as_ref(), &graph) {
                None => counts.push(format!("{} refused", backend.name())),
                Some((count, launches)) => {
                    counts.push(format!("{} {count}", backend.name()));
                    println!("{stem} on {}: {count}: {}", backend.name(), launches.join(" "));
                    if count > MOST && !MORE.iter().any(|(of, _)| stem.starts_with(of)) {
                        wrong.push(format!("{stem} on {}: {count}: {}", backend.name(), launches.join(" ")));
                    }
                }
            }
        }
        let counts = counts.join("  ");
        let listed = table.insert(stem.to_owned(), counts.clone());
        if !update && listed.as_ref() != Some(&counts) {
            wrong.push(format!("{stem}: {counts}; golden/launches.txt says {listed:?}"));
        }
    }
    for (of, _) in MORE {
        let takes_more = |counts: &String| {
            counts.split_whitespace().filter_map(|word| word.parse().ok()).any(|count: usize| count > MOST)
        };
        let mut those = table.iter().filter(|(stem, _)| stem.starts_with(of)).peekable();
        if those.peek().is_some() && !those.any(|(_, counts)| takes_more(counts)) {
            wrong.push(format!("{of} takes at most {MOST} by now"));
        }
    }
    if update {
        let mut text = "# The most launches of any layer in a decode step.\n".to_owned();
        table.iter().for_each(|(stem, counts)| text.push_str(&format!("{stem:<28} {counts}\n")));
        std::fs::write(&path, text).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
