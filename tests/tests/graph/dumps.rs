//! Dumps of the 48-layer target: they fold onto a screen, they are fast, their numbers add up, their schema is documented.

use crate::common::{DECODE, Dumped, one_layer, plan_of, target};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{CompileOptions, registry};
use moe_run_graph::Model;
use moe_run_graph::cost::step_cost;
use moe_run_graph::dump::{self, KernelInfo, MeasuredTimes, Subject};
use moe_run_graph::gguf::{MetaArray, MetaValue as V};
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_inspect::profile::Profile;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A terminal's lines.
const SCREEN_LINES: usize = 60;

#[test]
fn forty_eight_layers_fold_onto_a_screen() {
    let model = target().lower();
    let plan = plan_of(&model.1, &TapSelection::None, &[]);
    let mut texts = Vec::new();
    for subject in [Subject::Lowered, Subject::Optimized(&plan), Subject::Plan(&plan)] {
        let dump = Dumped { bandwidth_bytes_per_s: Some(60e9), ..Dumped::new(subject) }.dump(&model);
        texts.push(dump::text(&dump));
        let dot = dump::dot(&dump);
        assert!(dot.lines().count() < 140, "{} lines of DOT", dot.lines().count());
        dump::json(&dump).unwrap();
        dump::html(&dump).unwrap();
    }
    for text in &texts {
        let graph: Vec<&str> = text.lines().collect();
        assert!(graph.len() <= SCREEN_LINES + 12, "{} lines:\n{text}", graph.len());
        assert_eq!(text.matches("layers 0–47 (48 of one structure").count(), 1, "{text}");
    }
    // The graph itself, without the tables below it, is a screen.
    let body = texts[0].split("\n\n").nth(1).unwrap();
    assert!(body.lines().count() <= SCREEN_LINES / 2, "{body}");
    assert!(body.contains("Q4_K|Q6_K [128, 2048, 768]"), "{body}");
    assert!(texts[0].contains("down_proj, v_proj: Q4_K in layers 6, 7, 9, 10"), "{}", texts[0]);
}

#[test]
fn layers_of_another_structure_make_their_own_group() {
    let mut blueprint = target();
    let mut heads = vec![4; 48];
    heads[20] = 8;
    blueprint.set("qwen3moe.attention.head_count_kv", V::Array(MetaArray::U32(heads)));
    for name in ["attn_k", "attn_v"] {
        let tensor = blueprint.tensors.get_mut(&format!("blk.20.{name}.weight")).unwrap();
        tensor.0 = vec![1024, 2048];
    }
    let dump = Dumped::new(Subject::Lowered).dump(&blueprint.lower());
    let groups: Vec<usize> = dump.layer_groups.iter().map(|g| g.layers.len()).collect();
    assert_eq!(groups, [47, 1]);
    assert_eq!(dump.layer_groups[1].layers, [20]);
    let text = dump::text(&dump);
    assert!(text.contains("layers 0–19, 21–47 (47 of one structure") && text.contains("layer 20:"), "{text}");
}

#[test]
fn a_range_of_layers_leaves_the_rest_out() {
    let model = target().lower();
    let dump = Dumped { layers: Some(3..5), ..Dumped::new(Subject::Lowered) }.dump(&model);
    let layers: BTreeSet<Option<usize>> = dump.nodes.iter().map(|n| n.layer).collect();
    assert_eq!(layers, [None, Some(3), Some(4)].into());
    assert_eq!(dump.totals.nodes, 2 * 23 + 4);
    assert!(dump.taps.iter().all(|t| matches!(t.layer, None | Some(3 | 4))));
    assert!(dump::dot(&dump).contains("layers 3, 4 (2 of one structure)"));
}

#[test]
fn sums_are_those_of_the_plan() {
    let model = target().lower();
    let plan = plan_of(&model.1, &TapSelection::None, &[]);
    let dump = Dumped { bandwidth_bytes_per_s: Some(1e9), ..Dumped::new(Subject::Plan(&plan)) }.dump(&model);
    let step = step_cost(&plan, DECODE, &|elems| elems * 2);
    assert_eq!(dump.totals.cost.cost, step);
    let by_kind: u64 = dump.kinds.iter().map(|k| k.cost.total_bytes).sum();
    let whole: u64 = dump.launches.iter().filter(|l| l.layer.is_none()).map(|l| l.cost.total_bytes).sum();
    let layers: u64 = dump.layer_groups.iter().map(|g| g.cost.total_bytes).sum();
    assert_eq!((by_kind, whole + layers), (step.bytes(), step.bytes()));
    // Weights of a token: PERFORMANCE's 1.92 GB, beside the cache and what goes between launches.
    assert!((1.91e9..1.93e9).contains(&(step.weight_bytes as f64)));
    assert!((dump.totals.cost.roofline_seconds.unwrap() - step.bytes() as f64 / 1e9).abs() < 1e-12);
    // Tensors stand in the file once: 18.55 GB of them.
    assert!((18.5e9..18.6e9).contains(&(dump.model.weight_bytes as f64)), "{}", dump.model.weight_bytes);
}

#[test]
fn references_lead_to_what_the_dump_holds() {
    let model = one_layer().lower();
    let plan = plan_of(&model.1, &TapSelection::All, &[]);
    for subject in [Subject::Lowered, Subject::Plan(&plan)] {
        let dump = Dumped::new(subject).dump(&model);
        let nodes: BTreeSet<u32> = dump.nodes.iter().map(|n| n.id).collect();
        let values: BTreeSet<u32> = dump.values.iter().map(|v| v.id).collect();
        let weights: BTreeSet<u32> = dump.weights.iter().map(|w| w.id).collect();
        for node in &dump.nodes {
            assert!(node.inputs.iter().chain(&node.outputs).all(|v| values.contains(v)), "{}", node.path);
            assert!(node.weights.iter().all(|w| weights.contains(w)), "{}", node.path);
        }
        assert!(dump.launches.iter().all(|l| l.phases.iter().flatten().all(|n| nodes.contains(n))));
        assert!(dump.taps.iter().all(|t| t.node.is_some_and(|n| nodes.contains(&n)) && t.kept));
        assert!(dump.values.iter().filter_map(|v| v.producer).all(|n| nodes.contains(&n)));
    }
}

#[test]
fn dot_declares_what_it_connects() {
    let model = target().lower();
    let dot = dump::dot(&Dumped::new(Subject::Lowered).dump(&model));
    assert_eq!(dot.matches('{').count(), dot.matches('}').count());
    let name = |s: &str| s.trim().trim_matches('"').to_owned();
    let declared: BTreeSet<String> = dot
        .lines()
        .filter(|l| l.contains('[') && !l.contains("->"))
        .map(|l| name(l.split('[').next().unwrap()))
        .collect();
    let mut edges = 0;
    for line in dot.lines() {
        let Some((from, rest)) = line.split_once(" -> ") else { continue };
        let to = rest.split(' ').next().unwrap();
        assert!(declared.contains(&name(from)) && declared.contains(&name(to)), "{line}");
        edges += 1;
    }
    assert!(edges > 40, "{edges}");
    // Layer to layer: the residual stream leads back to the top of the folded layers.
    assert!(dot.contains("style=dashed constraint=false"));
}

/// Every field of every object that a dump may hold, as `section.field`.
fn fields(value: &Value, section: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| fields(item, section, found)),
        Value::Object(map) => {
            for (key, inner) in map {
                found.insert(format!("{section}.{key}"));
                let inside = match (section, key.as_str()) {
                    (_, "cost") => "A cost".to_owned(),
                    (_, "measured") => "A measured time".to_owned(),
                    // Their keys are names of attributes, nodes and formats.
                    (_, "attributes" | "formats") => continue,
                    ("The object", _) if inner.is_array() => format!("{key}[]"),
                    ("The object", _) => key.clone(),
                    _ => format!("{section}.{key}"),
                };
                fields(inner, &inside, found);
            }
        }
        _ => {}
    }
}

#[test]
fn the_documentation_names_every_field_and_no_other() {
    let model = target().lower();
    let plan = plan_of(&model.1, &TapSelection::None, &[]);
    let kernel = |_: &_| {
        Some(KernelInfo {
            name: "k".into(),
            grid: Some([1, 2, 3]),
            workgroup: Some([64, 1, 1]),
            dispatches: Some(2),
            source: Some("secret".into()),
        })
    };
    let mut dumped = Dumped::new(Subject::Plan(&plan));
    dumped.backend = Some("cpu");
    dumped.kernel = &kernel;
    dumped.measured = Some(MeasuredTimes { steps: 1, launch_seconds: vec![1e-6; plan.launches.len()] });
    let json = dump::json(&dumped.dump(&model)).unwrap();
    assert!(!json.contains("secret"));
    let mut found = BTreeSet::new();
    fields(&serde_json::from_str(&json).unwrap(), "The object", &mut found);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/graph-json.md");
    let mut documented = BTreeSet::new();
    let mut section = String::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            section = heading.trim_matches('`').to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            documented.insert(format!("{section}.{}", row.split('`').next().unwrap()));
        }
    }
    let undocumented: Vec<&String> = found.difference(&documented).collect();
    let gone: Vec<&String> = documented.difference(&found).collect();
    assert!(undocumented.is_empty() && gone.is_empty(), "undocumented: {undocumented:?}, gone: {gone:?}");
}

#[test]
fn a_profile_shares_out_the_whole_of_the_time() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-qwen3moe-q4_k_m.gguf");
    let model = Model::open(&path).unwrap();
    let options = CompileOptions { ctx_size: 64, ..CompileOptions::default() };
    let backend = registry::by_name("reference").unwrap();
    let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
    let mut session = Session::new(executable).unwrap();
    let mut profile = Profile::new();
    for tokens in [&[1, 2, 3][..], &[4, 5, 6]] {
        let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
        session.feed(&tokens, LogitsRows::Last, Some(&mut profile), |_, _| Ok(())).unwrap();
    }
    let plan = session.executable().plan(3).clone();
    let times = profile.of(&plan).unwrap();
    assert_eq!(times.steps, 2);
    assert!(times.launch_seconds.iter().all(|s| *s > 0.0));
    let other = plan_of(&one_layer().lower().1, &TapSelection::None, &[]);
    assert_eq!(profile.of(&other), None);

    let mut dumped = Dumped::new(Subject::Plan(&plan));
    dumped.bandwidth_bytes_per_s = Some(10e9);
    dumped.measured = Some(times.clone());
    let dump = dumped.dump(&(model.config.clone(), model.graph.clone()));
    let all: f64 = times.launch_seconds.iter().sum();
    let measured = dump.totals.measured.unwrap();
    assert!((measured.seconds - all).abs() < 1e-9 * all && (measured.share - 1.0).abs() < 1e-9);
    let shares: f64 = dump.kinds.iter().map(|k| k.measured.unwrap().share).sum();
    assert!((shares - 1.0).abs() < 1e-9);
    // The dearest kind comes first.
    let by_kind: BTreeMap<&str, f64> =
        dump.kinds.iter().map(|k| (k.kind, k.measured.unwrap().seconds)).collect();
    assert!(by_kind.values().all(|s| *s <= by_kind[dump.kinds[0].kind]));
    let text = dump::text(&dump);
    assert!(text.contains("measured") && text.contains("of best") && text.contains("share"), "{text}");
}
