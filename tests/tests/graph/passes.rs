//! The passes: taps that nobody asked for, grouping by patterns, and an arena that no two living values share.

use crate::common::{one_layer, plan_of};
use moe_run_graph::groups::{LaunchPattern, Matcher};
use moe_run_graph::ir::{
    ActivationFn, DType, Dim, Graph, LayerIdx, Node, Op, Shape, Stage, StepSizes, ValueId,
};
use moe_run_graph::ir::{WeightHome, WeightSlice};
use moe_run_graph::passes::{
    Plan, PlanOptions, TapSelection, drop_unrequested_taps, group_launches, none_alone, verify_plan,
};
use moe_run_graph::quant::Format;
use moe_run_graph::synth::Random;
use moe_run_graph::verify::GraphError;

/// A pattern of a run of steps: from a node that fits the first, each further one takes the next free node of the layer that
/// fits it and either reads what the run has made, or reads a value with it. A step is a stem, a name or any, and whether it may
/// be absent.
fn run(name: &'static str, steps: Vec<(&'static str, Option<&'static str>, bool)>) -> LaunchPattern {
    LaunchPattern::from_fn(name, move |matcher: &Matcher<'_>, anchor: &Node| {
        let mut taken: Vec<&Node> = Vec::new();
        for (stem, name, is_optional) in &steps {
            let fits = |n: &&Node| {
                n.op.stem() == *stem
                    && name.is_none_or(|name| name == n.name)
                    && n.layer == anchor.layer
                    && taken.last().is_none_or(|last| last.id < n.id)
            };
            let joins = |n: &&Node| {
                let reads =
                    |t: &&Node| n.inputs.iter().any(|v| t.outputs.contains(v) || t.inputs.contains(v));
                if taken.is_empty() { n.id == anchor.id } else { taken.iter().any(reads) }
            };
            let free = matcher.graph().nodes.iter().filter(|n| matcher.is_free(n));
            match free.filter(fits).find(joins) {
                Some(node) => taken.push(node),
                None if *is_optional => {}
                None => return Vec::new(),
            }
        }
        if taken.is_empty() { Vec::new() } else { vec![taken.iter().map(|n| n.id).collect()] }
    })
}

fn one(stem: &'static str) -> (&'static str, Option<&'static str>, bool) {
    (stem, None, false)
}

fn qkv() -> LaunchPattern {
    let named = |stem, name| (stem, Some(name), false);
    let maybe = |stem, name| (stem, Some(name), true);
    run(
        "norm_qkv_rope",
        vec![
            named("rms_norm", "attn_norm"),
            named("matmul", "q_proj"),
            named("matmul", "k_proj"),
            named("matmul", "v_proj"),
            maybe("rms_norm", "q_norm"),
            maybe("rms_norm", "k_norm"),
            one("rope"),
            one("rope"),
            one("kv_write"),
        ],
    )
}

fn experts() -> LaunchPattern {
    run("gate_up", vec![one("expert_matmul"), one("expert_matmul"), one("gated_act")])
}

fn names(plan: &Plan) -> Vec<(&'static str, Vec<Vec<&'static str>>)> {
    let of = |ids: &Vec<_>| ids.iter().map(|id| plan.graph.node(*id).unwrap().name).collect();
    plan.launches.iter().map(|l| (l.pattern, l.phases.iter().map(of).collect())).collect()
}

fn selection(stages: &[(Stage, Option<usize>)]) -> TapSelection {
    stages.iter().copied().collect()
}

/// A graph in which no tap was ever set, by hand: without taps and without what only they would show.
fn untapped(graph: &Graph) -> Graph {
    let mut bare = graph.clone();
    bare.nodes.retain(|n| !matches!(n.op, Op::Tap { .. } | Op::AttentionScores(_) | Op::AttentionSoftmax(_)));
    bare
}

#[test]
fn a_plan_without_taps_is_that_of_a_graph_that_never_had_any() {
    let (_, graph) = one_layer().lower();
    let bare = untapped(&graph);
    assert!(bare.nodes.len() < graph.nodes.len() && bare.taps().count() == 0);
    for backend in moe_run_backends::registry::all() {
        for tokens in [1, 512] {
            let max_sizes = StepSizes { tokens, logits_rows: tokens, cached: 512 };
            let plan = |graph: &Graph| {
                let patterns = backend.patterns(tokens, &moe_run_backends::CompileOptions::default());
                let options = PlanOptions {
                    taps: &TapSelection::None,
                    patterns: &patterns,
                    alone: &none_alone,
                    max_sizes,
                };
                moe_run_graph::passes::plan(graph, &options).unwrap()
            };
            let (off, never) = (plan(&graph), plan(&bare));
            let case = format!("{} for {tokens} tokens", backend.name());
            assert_eq!(off.graph.nodes, never.graph.nodes, "{case}");
            assert_eq!(off.launches, never.launches, "{case}");
            assert_eq!(off.memory, never.memory, "{case}");
        }
    }
}

#[test]
fn unrequested_taps_go_and_with_them_what_fed_only_those() {
    let (_, graph) = one_layer().lower();
    let none = drop_unrequested_taps(&graph, &TapSelection::None);
    assert_eq!(none.taps().count(), 0);
    assert!(none.nodes.iter().all(|n| n.name != "attn_scores" && n.name != "attn_softmax"));
    assert!(none.nodes.iter().any(|n| n.name == "kv_write"), "later steps read what is written");

    let softmax = drop_unrequested_taps(&graph, &selection(&[(Stage::AttnSoftmax, Some(0))]));
    assert_eq!(softmax.taps().count(), 1);
    assert!(softmax.nodes.iter().any(|n| n.name == "attn_scores"), "softmax is made from the scores");
    let other_layer = drop_unrequested_taps(&graph, &selection(&[(Stage::AttnSoftmax, Some(1))]));
    assert_eq!(other_layer.nodes, none.nodes);

    let all = drop_unrequested_taps(&graph, &TapSelection::All);
    assert_eq!(all, graph);
    // What is left keeps its ids: a node is the same node at every level.
    for node in &none.nodes {
        assert_eq!(graph.node(node.id), Some(node));
    }
}

#[test]
fn the_first_pattern_that_fits_takes_its_run_and_the_rest_stand_alone() {
    let (_, graph) = one_layer().lower();
    let plan = plan_of(&graph, &TapSelection::None, &[qkv(), experts()]);
    let launches = names(&plan);
    let qkv = &launches[1];
    assert_eq!(qkv.0, "norm_qkv_rope");
    assert_eq!(
        qkv.1,
        [vec!["attn_norm", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rope", "k_rope", "kv_write"]]
    );
    assert!(launches.contains(&("gate_up", vec![vec!["gate_proj", "up_proj", "swiglu"]])));
    assert!(launches.contains(&("matmul", vec![vec!["o_proj"]])));
    // A value that leaves its launch is stored, one that stays in it is not.
    let stored = |name: &str| {
        let node = plan.graph.nodes.iter().find(|n| n.name == name).unwrap();
        plan.is_stored(node.outputs[0])
    };
    assert!(!stored("attn_norm") && !stored("q_proj") && !stored("q_norm") && stored("q_rope"));
    assert!(!stored("gate_proj") && !stored("kv_write"));
}

#[test]
fn taps_change_no_grouping_of_production() {
    let (_, graph) = one_layer().lower();
    let bare = plan_of(&graph, &TapSelection::None, &[qkv(), experts()]);
    let all = plan_of(&graph, &TapSelection::All, &[qkv(), experts()]);
    let production: Vec<_> = names(&all)
        .into_iter()
        .zip(&all.launches)
        .filter(|(_, launch)| !launch.recomputed)
        .map(|(n, _)| n)
        .collect();
    assert_eq!(production, names(&bare));
    let recomputed: Vec<_> = all.launches.iter().filter(|l| l.recomputed).map(|l| l.pattern).collect();
    assert_eq!(recomputed, ["attention_scores", "attention_softmax"]);
    // Every tap is delivered by the launch that makes the last of its values, from inside a group too.
    let delivered: usize = all.launches.iter().map(|l| l.taps.len()).sum();
    assert_eq!(delivered, graph.taps().count());
    let qkv: Vec<&str> = all.launch_taps(&all.launches[1]).map(|(_, s)| s.name()).collect();
    assert_eq!(qkv, ["attn_norm", "qkv_matmul", "q_norm", "k_norm", "q_post_rope", "k_post_rope"]);
}

#[test]
fn optional_steps_may_be_absent_and_a_pattern_of_nothing_fits_nothing() {
    let mut graph = Graph::new();
    let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(8)]), DType::F32);
    let mut push = |name, op, inputs: &[ValueId]| graph.push(None, name, op, inputs).unwrap()[0];
    let a = push("a", Op::Add, &[x, x]);
    let b = push("b", Op::Mul, &[a, x]);
    let c = push("c", Op::Add, &[b, x]);
    graph.outputs.push(c);

    let tail = run("tail", vec![("rope", None, true), one("mul"), one("add")]);
    let nothing = run("nothing", vec![("rope", None, true)]);
    let refused = LaunchPattern::from_fn("refused", |_, _| Vec::new());
    let launches = group_launches(&graph, &[nothing, refused, tail.clone()], &none_alone);
    let patterns: Vec<&str> = launches.iter().map(|l| l.pattern).collect();
    assert_eq!(patterns, ["add", "tail"]);
    assert_eq!(launches[1].len(), 2);
    // No group takes what is to be alone.
    let launches = group_launches(&graph, &[tail], &|n| matches!(n.op, Op::Mul));
    let patterns: Vec<&str> = launches.iter().map(|l| l.pattern).collect();
    assert_eq!(patterns, ["add", "mul", "add"]);
}

#[test]
fn a_group_never_reaches_into_another_layer() {
    let mut graph = Graph::new();
    let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(8)]), DType::F32);
    let a = graph.push(Some(LayerIdx(0)), "a", Op::Add, &[x, x]).unwrap()[0];
    let b = graph.push(Some(LayerIdx(1)), "b", Op::Add, &[a, x]).unwrap()[0];
    graph.outputs.push(b);
    let pair = run("pair", vec![one("add"), one("add")]);
    let patterns: Vec<&str> =
        group_launches(&graph, &[pair], &none_alone).iter().map(|l| l.pattern).collect();
    assert_eq!(patterns, ["add", "add"]);
}

#[test]
fn a_tap_of_a_boundary_value_is_delivered_first() {
    let mut graph = Graph::new();
    let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(8)]), DType::F32);
    graph.tap(None, Stage::Embedding, &[x]).unwrap();
    let y = graph.push(None, "y", Op::Add, &[x, x]).unwrap()[0];
    graph.outputs.push(y);
    let plan = plan_of(&graph, &TapSelection::All, &[]);
    assert_eq!(plan.launches[0].taps.len(), 1);
}

/// A graph of 5 to 44 nodes over values [T, 32], with taps, several outputs, and ops with two results.
fn random_graph(random: &mut Random) -> Graph {
    let mut graph = Graph::new();
    let below = |random: &mut Random, n: usize| (random.next_u64() % n as u64) as usize;
    let mut values: Vec<ValueId> =
        (0..2).map(|_| graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(32)]), DType::F32)).collect();
    let tensor = graph.add_weight("w", vec![32, 32], Format::F32);
    let stages = Stage::ALL;
    let mut tapped = 0;
    for _ in 0..5 + below(random, 40) {
        let layer = Some(LayerIdx((graph.nodes.len() / 12) as u32));
        // Mostly recent values, so that lifetimes are short and memory is reused.
        let pick = |random: &mut Random| {
            let back = 1 + below(random, 4).min(below(random, 40));
            values[values.len().saturating_sub(back)]
        };
        let (a, b) = (pick(random), pick(random));
        let weight = WeightSlice { tensor, rows: 0..32, experts: None, home: WeightHome::Device };
        let (node, inputs): (Op, Vec<ValueId>) = match below(random, 5) {
            0 => (Op::Mul, vec![a, b]),
            1 => (Op::MatMul { weight, bias: None, scale: None }, vec![a]),
            2 => (Op::GatedAct { activation: ActivationFn::Silu }, vec![a, b]),
            _ => (Op::Add, vec![a, b]),
        };
        let made = graph.push(layer, "node", node, &inputs).unwrap();
        if below(random, 4) == 0 && tapped < stages.len() {
            let beside: Vec<ValueId> = made.iter().copied().chain([a]).take(1 + below(random, 2)).collect();
            graph.tap(layer, stages[tapped], &beside).unwrap();
            tapped += 1;
        }
        values.extend(made);
    }
    let last = values.len() - 1;
    graph.outputs.push(values[last]);
    if below(random, 2) == 0 {
        graph.outputs.push(values[values.len() / 2]);
    }
    graph
}

fn random_patterns(random: &mut Random) -> Vec<LaunchPattern> {
    let stems = ["add", "mul", "matmul", "gated_act"];
    let mut pick = |n: usize| (random.next_u64() % n as u64) as usize;
    (0..1 + pick(5))
        .map(|_| {
            let steps = (0..2 + pick(4)).map(|_| (stems[pick(4)], None, pick(3) == 0)).collect();
            run("group", steps)
        })
        .collect()
}

/// Runs a plan on an arena whose bytes hold the name of the value that wrote them last.
fn nothing_is_overwritten_while_needed(plan: &Plan) {
    let mut arena: Vec<Option<ValueId>> = vec![None; plan.memory.arena_bytes];
    let range = |v: ValueId| plan.memory.slot(v).map(|s| s.offset_bytes..s.offset_bytes + s.size_bytes);
    let is_whole = |arena: &[Option<ValueId>], v: ValueId| {
        let Some(range) = range(v) else { return false };
        arena[range].iter().all(|owner| *owner == Some(v))
    };
    for launch in &plan.launches {
        for phase in &launch.phases {
            let nodes: Vec<_> = phase.iter().map(|id| plan.graph.node(*id).unwrap()).collect();
            let made: Vec<ValueId> = nodes.iter().flat_map(|n| n.outputs.iter().copied()).collect();
            let outside = |v: &ValueId| !made.contains(v) && plan.graph.value(*v).producer.is_some();
            let inputs = || nodes.iter().flat_map(|n| n.inputs.iter().copied()).filter(outside);
            for v in inputs() {
                assert!(is_whole(&arena, v), "{v} is gone before launch {}", launch.id);
            }
            for v in &made {
                if let Some(range) = range(*v) {
                    arena[range].fill(Some(*v));
                }
            }
            // A phase reads while it writes: nothing that it reads may lie where it writes.
            for v in inputs() {
                assert!(is_whole(&arena, v), "{v} is overwritten by its reader, launch {}", launch.id);
            }
        }
        for (tap, _) in plan.launch_taps(launch) {
            for v in tap.inputs.iter().filter(|v| plan.graph.value(**v).producer.is_some()) {
                assert!(is_whole(&arena, *v), "{v} is gone before its tap");
            }
        }
    }
    for v in &plan.graph.outputs {
        assert!(is_whole(&arena, *v), "output {v} is gone");
    }
}

#[test]
fn memory_is_never_shared_by_living_values() {
    let mut random = Random::new(&[7]);
    let (mut arena_bytes, mut naive_bytes, mut groups) = (0, 0, 0);
    for _ in 0..400 {
        let graph = random_graph(&mut random);
        let patterns = random_patterns(&mut random);
        for taps in [TapSelection::None, TapSelection::All] {
            let plan = plan_of(&graph, &taps, &patterns);
            nothing_is_overwritten_while_needed(&plan);
            assert!(plan.memory.arena_bytes <= plan.memory.naive_bytes);
            arena_bytes += plan.memory.arena_bytes;
            naive_bytes += plan.memory.naive_bytes;
            groups += plan.launches.iter().filter(|l| l.len() > 1).count();
        }
    }
    assert!(groups > 300, "only {groups} groups were met");
    assert!(arena_bytes * 4 < naive_bytes * 3, "{arena_bytes} of {naive_bytes}: little is reused");
}

#[test]
fn a_broken_plan_is_refused_by_the_rule_that_it_breaks() {
    let (_, graph) = one_layer().lower();
    let sound = plan_of(&graph, &TapSelection::All, &[qkv(), experts()]);
    let broken = |rule: &str, change: &dyn Fn(&mut Plan)| {
        let mut plan = sound.clone();
        change(&mut plan);
        match verify_plan(&plan) {
            Err(GraphError::Rule { rule: found, .. }) => assert_eq!(found, rule),
            other => panic!("{rule}: {other:?}"),
        }
    };
    broken("node-in-one-launch", &|p| {
        p.launches[3].phases[0].clear();
    });
    broken("node-in-one-launch", &|p| {
        let twice = p.launches[0].phases[0][0];
        p.launches[2].phases[0].push(twice);
    });
    broken("node-in-one-launch", &|p| {
        let with_taps = p.launches.iter_mut().find(|l| !l.taps.is_empty()).unwrap();
        with_taps.taps.pop();
    });
    broken("launch-order", &|p| p.launches.swap(0, 1));
    broken("crossing-value-stored", &|p| {
        p.memory.slots.remove(0);
    });
    broken("alive-while-needed", &|p| {
        let slot = p.memory.slots.iter_mut().find(|s| s.last_launch > s.first_launch).unwrap();
        slot.last_launch = slot.first_launch;
    });
    broken("buffers-apart", &|p| {
        for slot in &mut p.memory.slots {
            slot.offset_bytes = 0;
        }
    });
}
