//! Random cases of every op on every backend against the reference, under the same definition of activations and KV.

use moe_run_backends::reference::Reference;
use moe_run_backends::{
    Activations, Backend, CompileOptions, DeviceKind, Executable, ExecutableInfo, KvType,
};
use moe_run_graph::ir::{
    DType, Dim, ExpertGroups, GateKind, Graph, GroupScore, Op, RopePairing, RopeScaling, RopeSpec,
    RouterAttrs, Shape,
};
use moe_run_graph::passes::{group_launches, none_alone};
use moe_run_graph::quant::Format;
use moe_run_inspect::cases::groups::{self, GroupCase};
use moe_run_inspect::cases::{self, OPS, OpCase, TOLERANCE};
use moe_run_tests::{backends, fixtures};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// How many cases ran, and how many a backend refused.
#[derive(Default, Clone, Copy, Debug)]
struct Tally {
    ran: usize,
    refused: usize,
}

/// So many seeds, or many more with `--full`; fewer where the processor runs a GPU's interface, a shader a shape.
fn seeds(backend: &dyn Backend, few: u64) -> std::ops::Range<u64> {
    let software = backend.name() == "wgpu"
        && backend.devices().is_ok_and(|d| d.iter().all(|d| d.kind == DeviceKind::Software));
    0..match (software, fixtures::full()) {
        (false, false) => few,
        (false, true) => 20 * few,
        (true, false) => few.div_ceil(4),
        (true, true) => 2 * few,
    }
}

/// Whether to run an op or a group: `MOE_OP=matmul,router` runs these alone.
fn is_asked_for(name: &str) -> bool {
    std::env::var("MOE_OP").map_or(true, |some| some.split(',').any(|one| one == name))
}

/// Runs a case and compares it with the reference; `None` where the backend refuses it with a typed error.
fn check(
    case: &OpCase,
    backend: &dyn Backend,
    options: &CompileOptions,
    tolerance: impl Fn(&ExecutableInfo) -> f64,
) -> Option<Box<dyn Executable>> {
    let failed = |e| -> ! { panic!("{} on {}: {e}", case.name, backend.name()) };
    let mut executable = match cases::compile(case, backend, options) {
        Ok(executable) => executable,
        Err(error) if cases::is_refusal(&error) => return None,
        Err(error) => failed(error),
    };
    let found = cases::run_steps(case, executable.as_mut()).unwrap_or_else(|e| failed(e));
    let same = cases::same_definition(executable.info());
    let wanted = cases::run(case, &Reference, &same).unwrap_or_else(|e| failed(e));
    assert_eq!(found.len(), wanted.len());
    let (tolerance, typical) = (tolerance(executable.info()), cases::typical(case));
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let distance = cases::distance_of_typical(found, wanted, typical);
        let report = format!(
            "{} on {}, activations {}, kv {}: result {i}: relative L2 {distance:.3e} of {tolerance:.0e}",
            case.name,
            backend.name(),
            executable.info().activations,
            options.kv_type,
        );
        assert!(distance <= tolerance, "{report}");
    }
    Some(executable)
}

fn over_seeds(op: &str, activations: &[Activations], kv_types: &[KvType], few: u64) {
    if !is_asked_for(op) {
        return;
    }
    for backend in backends() {
        let mut tally = Tally::default();
        for seed in seeds(backend.as_ref(), few) {
            let formats = if cases::takes_formats(op) { &Format::ALL[..] } else { &[Format::F32] };
            for format in formats {
                let case = cases::case(op, *format, seed).unwrap().unwrap();
                for (activations, kv_type) in
                    activations.iter().flat_map(|a| kv_types.iter().map(move |k| (*a, *k)))
                {
                    let options = CompileOptions {
                        activations: Some(activations),
                        kv_type,
                        ..CompileOptions::default()
                    };
                    match check(&case, backend.as_ref(), &options, |_| TOLERANCE) {
                        Some(_) => tally.ran += 1,
                        None => tally.refused += 1,
                    }
                }
            }
        }
        println!("{op} on {}: {tally:?}", backend.name());
        match LACKING.contains(&(backend.name(), op)) {
            true => assert_eq!(tally.ran, 0, "{op} is on {} by now", backend.name()),
            false => assert!(tally.ran > tally.refused, "{op} on {}: {tally:?}", backend.name()),
        }
    }
}

/// Ops that a backend does not have yet: each of their cases is refused by a typed error.
const LACKING: &[(&str, &str)] = &[];

#[test]
fn ops_that_read_quantized_weights() {
    for op in ["matmul", "head_matmul", "expert_matmul"] {
        over_seeds(op, &[Activations::F32, Activations::Q8, Activations::F16], &[KvType::F32], 4);
    }
    over_seeds("embed", &[Activations::F32], &[KvType::F32], 2);
}

#[test]
fn attention_over_every_kv_type() {
    over_seeds("attention", &[Activations::F32], KvType::ALL, 20);
    over_seeds("compressed_attention", &[Activations::F32], KvType::ALL, 12);
    over_seeds("kv_write", &[Activations::F32], KvType::ALL, 6);
    over_seeds("attention_scores", &[Activations::F32], KvType::ALL, 40);
    over_seeds("attention_softmax", &[Activations::F32], &[KvType::F32], 6);
}

#[test]
fn every_other_op() {
    for op in OPS {
        if !cases::takes_formats(op) && !op.starts_with("attention") && *op != "kv_write" {
            over_seeds(op, &[Activations::F32], &[KvType::F32], 20);
        }
    }
}

/// The token counts of steps that backends have groups for.
const STEPS: [usize; 3] = [1, 8, 512];

/// The patterns of a backend by which a case's nodes come to be launches.
fn patterns_of(case: &OpCase, backend: &dyn Backend, options: &CompileOptions) -> BTreeSet<&'static str> {
    let launches = STEPS.iter().flat_map(|tokens| {
        let patterns = backend.patterns(*tokens, options);
        group_launches(&case.graph, &patterns, &none_alone)
    });
    launches.filter(|launch| launch.nodes.len() > 1).map(|launch| launch.pattern).collect()
}

/// Every group of every backend, as a launch and op by op: each pattern that a backend has is met by some case that runs.
#[test]
fn every_group() {
    /// Seeds among which a case is looked for that meets a pattern.
    const SEARCHED: u64 = 300;
    for backend in backends() {
        let mut met = BTreeSet::new();
        for group in GroupCase::ALL.iter().filter(|group| is_asked_for(group.name())) {
            let mut tally = Tally::default();
            let few = seeds(backend.as_ref(), 24);
            for seed in 0..SEARCHED {
                let case = groups::case(*group, seed).unwrap();
                for (i, activations) in [Activations::F32, Activations::Q8].into_iter().enumerate() {
                    let kv_type = KvType::ALL[(seed as usize + i) % KvType::ALL.len()];
                    let options = CompileOptions {
                        activations: Some(activations),
                        kv_type,
                        ..CompileOptions::default()
                    };
                    let meets = patterns_of(&case, backend.as_ref(), &options);
                    if !few.contains(&seed) && meets.is_subset(&met) {
                        continue;
                    }
                    let limit = |info: &ExecutableInfo| groups::tolerance(&case, info);
                    if check(&case, backend.as_ref(), &options, limit).is_some() {
                        tally.ran += 1;
                        met.extend(meets);
                    } else {
                        tally.refused += 1;
                    }
                }
            }
            println!("{} on {}: {tally:?}", group.name(), backend.name());
            assert!(tally.ran > tally.refused, "{} on {}: {tally:?}", group.name(), backend.name());
        }
        for pattern in STEPS.iter().flat_map(|t| backend.patterns(*t, &CompileOptions::default())) {
            let all = std::env::var_os("MOE_OP").is_none();
            assert!(
                !all || met.contains(pattern.name),
                "no case meets {} of {}",
                pattern.name,
                backend.name()
            );
        }
    }
}

/// RoPE against angles computed here in f64 from the definition, at the ends of the context.
#[test]
fn rope_at_far_positions() {
    let (heads, d, theta) = (2, 64, 1e7);
    for backend in backends() {
        for position in [0u32, 4095, 32767, 262_143] {
            let mut graph = Graph::new();
            let table = graph.add_rope_table(RopeSpec {
                theta,
                dims: d,
                scaling: RopeScaling::None,
                divisors: Vec::new(),
                behind: 0,
                back: false,
            });
            let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(heads * d)]), DType::F32);
            let positions = graph.inputs.positions;
            let op = Op::Rope { table, pairing: RopePairing::Half, heads };
            graph.outputs = graph.push(None, "rope", op, &[x, positions]).unwrap();
            let values: Vec<f32> = (0..heads * d).map(|i| (i as f32 * 0.37).sin()).collect();
            let case = cases::OpCase {
                name: format!("rope at {position}"),
                graph,
                weights: Arc::new(HashMap::new()),
                steps: vec![cases::CaseStep {
                    first_position: position,
                    tokens: vec![moe_run_graph::ids::TokenId(0)],
                    logits_rows: Vec::new(),
                    boundary: vec![(
                        x,
                        moe_run_backends::HostTensor::f32(vec![1, heads * d], values.clone()),
                    )],
                }],
                ctx_size: position as usize + 1,
            };
            let options = CompileOptions { activations: Some(Activations::F32), ..CompileOptions::default() };
            let found = cases::run(&case, backend.as_ref(), &options).unwrap()[0].data.to_f32();
            for head in 0..heads {
                for i in 0..d / 2 {
                    let angle = f64::from(position) * theta.powf(-((2 * i) as f64) / d as f64);
                    let (a, b) = (f64::from(values[head * d + i]), f64::from(values[head * d + i + d / 2]));
                    let wanted = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
                    let found = (f64::from(found[head * d + i]), f64::from(found[head * d + i + d / 2]));
                    // cos and sin are rounded to f32 once, the products twice: 4 units of 2⁻²⁴ of values below √2.
                    let error = (found.0 - wanted.0).abs().max((found.1 - wanted.1).abs());
                    assert!(
                        error < 4e-7,
                        "{}: position {position}, head {head}, pair {i}: {error:.2e}",
                        backend.name()
                    );
                }
            }
        }
    }
}

/// One step of a router over these logits.
fn router_case<const E: usize>(attrs: RouterAttrs, logits: &[[f32; E]]) -> OpCase {
    let mut graph = Graph::new();
    let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(E)]), DType::F32);
    graph.outputs = graph.push(None, "router_topk", Op::Router(attrs), &[x]).unwrap();
    let step = cases::CaseStep {
        first_position: 0,
        tokens: vec![moe_run_graph::ids::TokenId(0); logits.len()],
        logits_rows: Vec::new(),
        boundary: vec![(x, moe_run_backends::HostTensor::f32(vec![logits.len(), E], logits.concat()))],
    };
    OpCase {
        name: "router".into(),
        graph,
        weights: Arc::new(HashMap::new()),
        steps: vec![step],
        ctx_size: logits.len(),
    }
}

/// The choice from the best groups where it is hard: a group that is best by its best and not by its best two, ties, NaN.
#[test]
fn router_ranks_groups_low_and_nan_last() {
    const NAN: f32 = f32::NAN;
    let logits = [
        [5.0, -9.0, 1.0, 1.0, 0.9, 0.8, -1.0, -1.0],
        [1.0; 8],
        [NAN, 5.0, 1.0, 1.0, 0.9, 0.8, -1.0, -1.0],
        [NAN; 8],
        [NAN, NAN, NAN, NAN, NAN, NAN, -1.0, -2.0],
    ];
    let by_best = [[0, 2, 3], [0, 1, 2], [1, 2, 3], [0, 1, 2], [6, 7, 0]];
    let by_best_two = [[2, 3, 4], [0, 1, 2], [2, 3, 4], [0, 1, 2], [6, 7, 0]];
    for (score, wanted) in [(GroupScore::Best, by_best), (GroupScore::BestTwo, by_best_two)] {
        let attrs = RouterAttrs {
            num_experts: 8,
            num_experts_per_tok: 3,
            gate: GateKind::Sigmoid,
            norm_topk_prob: true,
            scale: 1.0,
            selection_bias: None,
            groups: Some(ExpertGroups { n_group: 4, topk_group: 2, score }),
            expert_scale: None,
        };
        let case = router_case(attrs, &logits);
        let options = CompileOptions { activations: Some(Activations::F32), ..CompileOptions::default() };
        for backend in backends() {
            let found = cases::run(&case, backend.as_ref(), &options)
                .unwrap_or_else(|error| panic!("{}: {error}", backend.name()));
            let moe_run_backends::TensorData::U32(ids) = &found[0].data else { panic!("ids are U32") };
            assert_eq!(ids, &wanted.concat(), "{}, {score:?}", backend.name());
        }
    }
}

/// The choice of experts where it is hard: ties, NaN, and all of them NaN. A NaN is not chosen before a number, but shows in
/// the weights of those that are.
#[test]
fn router_ranks_ties_low_and_nan_last() {
    let logits = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [0.0, 2.0, 2.0, -1.0, 2.0, 1.0],
        [f32::NAN, 0.5, f32::NAN, 0.25, -3.0, 0.5],
        [f32::NAN; 6],
        [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::INFINITY, f32::NAN, 0.0],
        [-0.0, 0.0, -0.0, 0.0, -1.0, -2.0],
    ];
    let wanted: [[u32; 3]; 6] = [[0, 1, 2], [1, 2, 4], [1, 5, 3], [0, 1, 2], [0, 3, 2], [0, 1, 2]];
    let both = [true, false].map(|norm_topk_prob| backends().into_iter().map(move |b| (b, norm_topk_prob)));
    for (backend, norm_topk_prob) in both.into_iter().flatten() {
        let attrs = RouterAttrs {
            num_experts: 6,
            num_experts_per_tok: 3,
            gate: GateKind::Softmax,
            norm_topk_prob,
            scale: 1.0,
            selection_bias: None,
            groups: None,
            expert_scale: None,
        };
        let case = router_case(attrs, &logits);
        let options = CompileOptions { activations: Some(Activations::F32), ..CompileOptions::default() };
        let found = cases::run(&case, backend.as_ref(), &options).unwrap();
        let moe_run_backends::TensorData::U32(ids) = &found[0].data else { panic!("ids are U32") };
        assert_eq!(ids, &wanted.concat(), "{}", backend.name());
        let moe_run_backends::TensorData::F32(weights) = &found[1].data else { panic!("weights are F32") };
        let of_token: Vec<bool> = weights.chunks_exact(3).map(|w| w.iter().all(|w| w.is_nan())).collect();
        assert_eq!(of_token, [false, false, true, true, true, false], "{}: {weights:?}", backend.name());
    }
}
