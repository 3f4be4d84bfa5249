//! Layers whose experts several devices share: the bits of one device, whoever has which.

use super::{backend, compile, kinds, logits, model, options, placed, text};
use moe_run_backends::placed::{ExpertHome, ExpertPlaces, Placed};
use moe_run_backends::sequences::{Feed, Sequences};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::passes::{ExpertPart, expert_parts};
use moe_run_graph::place::{Budget, ExpertUse, PlaceError, Sizes, by_experts, expert_bytes};
use moe_run_graph::synth::Random;
use moe_run_tests::collect::all_taps;
use moe_run_tests::fixtures;

/// Experts dealt at random among the named devices.
pub fn dealt(model: &Model, trunk: Placed, devices: &[&str], seed: u64) -> Placed {
    let mut random = Random::new(&[31, seed]);
    let mut device = || (random.next_u64() % devices.len() as u64) as usize;
    let parts = expert_parts(&model.graph);
    let by_layer = parts
        .iter()
        .map(|part| (part.layer.index(), (0..part.num_experts).map(|_| device()).collect()))
        .collect();
    let home = |name: &&str| ExpertHome { backend: backend(name), device: None, label: (*name).to_owned() };
    trunk.with_experts(ExpertPlaces { devices: devices.iter().map(home).collect(), by_layer })
}

#[test]
fn random_halves_and_thirds_have_the_bits_of_one_device() {
    let mut split = 0;
    for (name, model) in kinds() {
        let parts = expert_parts(&model.graph).len();
        let layers = model.graph.num_layers;
        let tokens = text(&model, 1, 14);
        let wanted = logits(compile(backend("cpu").as_ref(), &model, &options()), &tokens, 3);
        for devices in [&["cpu", "cpu"][..], &["cpu", "cpu", "cpu"]] {
            let shared = dealt(&model, placed(&["cpu"], &[], layers), devices, devices.len() as u64);
            let found = logits(compile(&shared, &model, &options()), &tokens, 3);
            assert!(found == wanted, "{name}: experts on {} devices", devices.len());
        }
        println!("{name}: {parts} layers of experts");
        split += parts;
    }
    assert!(split >= 15, "{split} layers");
}

#[test]
fn every_architecture_s_experts_can_be_shared() {
    let mut seen = 0;
    for (name, path, _) in fixtures::architecture_models() {
        let model = model(&path);
        if expert_parts(&model.graph).is_empty() {
            println!("{name}: nothing to share");
            continue;
        }
        let tokens = text(&model, 2, 9);
        let wanted = logits(compile(backend("cpu").as_ref(), &model, &options()), &tokens, 2);
        let shared = dealt(&model, placed(&["cpu"], &[], model.graph.num_layers), &["cpu", "cpu"], 5);
        assert!(logits(compile(&shared, &model, &options()), &tokens, 2) == wanted, "{name}");
        seen += 1;
    }
    println!("{seen} models");
    assert!(seen >= 20, "{seen} models");
}

#[test]
fn layers_and_experts_are_split_at_once_and_taps_are_those_of_one_device() {
    for stem in ["micro/mixed-q4_k_m", "arch/gpt-oss/mxfp4"] {
        let Some(path) = fixtures::find(&format!("{stem}.gguf")) else { continue };
        let model = model(&path);
        let tokens = text(&model, 5, 7);
        let trunk = placed(&["cpu", "cpu"], &[1], model.graph.num_layers);
        let shared = dealt(&model, trunk, &["cpu", "cpu"], 6);
        let wanted = all_taps(backend("cpu").as_ref(), &model, &options(), &tokens).unwrap();
        let found = all_taps(&shared, &model, &options(), &tokens).unwrap();
        assert!(found.values.keys().eq(wanted.values.keys()), "{stem}");
        let bits = |data: Vec<f32>| data.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let differs = |stage: &&String| {
            let (found, wanted) = (&found.values[*stage], &wanted.values[*stage]);
            found.shape != wanted.shape || bits(found.data.to_f32()) != bits(wanted.data.to_f32())
        };
        let differ: Vec<&String> = wanted.values.keys().filter(differs).collect();
        assert!(differ.is_empty(), "{stem}: {differ:?}");
        // Tapped or not, and one by one: the same bits.
        let row = compile(&shared, &model, &options());
        let all = logits(row, &tokens, 0);
        let lm_head: Vec<u32> = found.values["lm_head"].data.to_f32().iter().map(|x| x.to_bits()).collect();
        assert_eq!(all, lm_head, "{stem}");
    }
}

#[test]
fn sequences_and_other_devices_share_experts() {
    let model = model(&fixtures::tiny_q4_k_m());
    let layers = model.graph.num_layers;
    let texts: Vec<_> = (0..3).map(|i| text(&model, i, 3 + i as usize)).collect();
    for devices in [["cpu", "cpu"], ["cpu", "cuda"]] {
        let shared = dealt(&model, placed(&["cpu"], &[], layers), &devices, 8);
        let mut session = Session::new(compile(&shared, &model, &options())).unwrap();
        let mut row = Vec::new();
        let options = CompileOptions { micro_batch: Some(24), ..options() };
        let mut company = Sequences::new(compile(&shared, &model, &options), 192, 3).unwrap();
        let ids: Vec<_> = texts.iter().map(|_| company.open().unwrap()).collect();
        let feed = |(sequence, tokens)| Feed { sequence, tokens, wants_logits: true };
        let feeds: Vec<_> = ids.iter().copied().zip(texts.iter().map(Vec::as_slice)).map(feed).collect();
        company.step(&feeds, None).unwrap();
        for (i, tokens) in texts.iter().enumerate() {
            session.truncate(0).unwrap();
            session.feed(tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
            session.logits(&mut row).unwrap();
            let wanted = row.clone();
            company.logits(i, &mut row).unwrap();
            let far = row.iter().zip(&wanted).any(|(a, b)| match devices[1] {
                "cpu" => a.to_bits() != b.to_bits(),
                // A GPU's sums may be in another order where more rows stand together.
                _ => (a - b).abs() > 1e-2,
            });
            assert!(!far, "{devices:?}, sequence {i}");
        }
    }
}

/// Greedy tokens of a prompt.
fn greedy(model: &Model, backend: &dyn Backend, count: usize) -> Vec<u32> {
    let options = CompileOptions { activations: Some(Activations::F32), ..options() };
    let mut session = Session::new(compile(backend, model, &options)).unwrap();
    session.feed(&text(model, 6, 6), LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut next = |_| {
        let token = session.argmax().unwrap();
        session.decode(token, None).unwrap();
        token.0
    };
    (0..count).map(&mut next).collect()
}

#[test]
fn a_third_of_the_experts_on_the_host_gives_the_same_greedy_tokens() {
    let model = model(&fixtures::tiny_q4_k_m());
    let layers = model.graph.num_layers;
    let wanted = greedy(&model, backend("cpu").as_ref(), 4);
    let harness = dealt(&model, placed(&["cuda"], &[], layers), &["cuda", "cuda", "cpu"], 9);
    assert_eq!(greedy(&model, &harness, 4), wanted);
    if backend("wgpu").devices().is_ok_and(|devices| !devices.is_empty()) {
        let wgpu = dealt(&model, placed(&["cpu"], &[], layers), &["cpu", "wgpu"], 10);
        assert_eq!(greedy(&model, &wgpu, 2), wanted[..2]);
    } else {
        println!("SKIPPED: no device of backend wgpu");
    }
}

#[test]
fn budgets_are_kept_and_what_is_used_most_goes_first() {
    let model = model(&fixtures::tiny_q4_k_m());
    let parts = expert_parts(&model.graph);
    let each = expert_bytes(&model.graph, &parts[0]);
    let sizes = Sizes::of(&model.graph, &|_| 0, 1000);
    let experts: u64 = parts.iter().map(|p| p.num_experts as u64 * expert_bytes(&model.graph, p)).sum();
    let trunk = sizes.total() - experts;
    let budget = |device: &str, bytes| Budget { device: device.into(), backend: device.into(), bytes };
    let place = |first: u64, second: Option<u64>, used: Option<&ExpertUse>| {
        let devices = [budget("cuda", Some(first)), budget("cpu", second)];
        by_experts(&model.graph, &parts, &sizes, &devices, used)
    };
    for tenth in 0..=10u64 {
        let first = trunk + experts * tenth / 10;
        let placement = place(first, None, None).unwrap();
        let of_part = |part: &ExpertPart| {
            let of = &placement.experts[&part.layer.index()];
            of.iter().filter(|d| **d == 0).count() as u64 * expert_bytes(&model.graph, part)
        };
        let on_first: u64 = parts.iter().map(of_part).sum();
        assert!(trunk + on_first <= first, "{tenth}");
        assert!(on_first + 2 * each * parts.len() as u64 >= experts * tenth / 10, "{tenth}: {on_first}");
    }
    match place(trunk - 1, None, None).unwrap_err() {
        PlaceError::TooSmall { wanted_bytes, device, .. } => {
            assert_eq!((wanted_bytes, device.as_str()), (trunk, "cuda"));
        }
        error => panic!("{error}"),
    }
    let Err(PlaceError::TooSmall { wanted_bytes, .. }) = place(trunk, Some(5000), None) else { panic!() };
    assert!(
        place(trunk, Some(wanted_bytes), None).is_ok() && place(trunk, Some(wanted_bytes - 1), None).is_err()
    );
    let mut used = ExpertUse::new();
    used.insert(1, vec![0, 0, 9, 0]);
    used.insert(0, vec![3]);
    let of_layer =
        |layer: usize| parts.iter().find(|p| p.layer.index() == layer).map(|p| expert_bytes(&model.graph, p));
    let two = of_layer(0).unwrap() + of_layer(1).unwrap();
    let placement = place(trunk + two, None, Some(&used)).unwrap();
    let first: Vec<(usize, usize)> = placement
        .experts
        .iter()
        .flat_map(|(layer, of)| {
            of.iter().enumerate().filter(|(_, d)| **d == 0).map(move |(e, _)| (*layer, e))
        })
        .collect();
    assert_eq!(first, [(0, 0), (1, 2)]);
    used.insert(0, vec![0; 1000]);
    assert!(matches!(place(trunk, None, Some(&used)), Err(PlaceError::Experts { layer: 0, .. })));
}
