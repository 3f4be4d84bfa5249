//! DeepSeek-V4: what its files refuse and leave out, and the states that its graph declares.

use moe_run_graph::architectures::{LowerError, TensorTable, lower, tensor_table};
use moe_run_graph::config::ModelConfig;
use moe_run_graph::gguf::{GgufFile, MetaArray, MetaValue as V, Metadata};
use moe_run_graph::ir::{ActivationFn, GateKind, Graph, Lifetime, Op, Rewind, StateRole};
use moe_run_graph::quant::{Format, GgmlType};
use moe_run_tests::fixtures;

const TABLE: &str = "blk.0.ffn_gate_tid2eid.weight";

/// The carried model with other metadata, tensors or ids.
fn lowered(
    change: impl Fn(&str) -> Option<V>,
    tensors: impl FnOnce(&mut TensorTable),
    id: f32,
) -> Result<(ModelConfig, Graph), LowerError> {
    let file = GgufFile::open(fixtures::find("arch/deepseek4/tiny.gguf").expect("carried")).unwrap();
    let pairs = file.metadata().iter().map(|(k, v)| {
        let rest = k.strip_prefix("deepseek4.").unwrap_or(k);
        (k.to_owned(), change(rest).unwrap_or_else(|| v.clone()))
    });
    let metadata = Metadata::from_pairs("tiny", pairs.collect::<Vec<_>>()).unwrap();
    let mut table = tensor_table(&file);
    tensors(&mut table);
    let elems = |name: &str| table.get(name).map(|(shape, _)| shape.iter().product());
    lower(&metadata, &table, &|name| Some(vec![id; elems(name)?]))
}

fn refused(key: &str, value: V) -> String {
    lowered(|k| (k == key).then(|| value.clone()), |_| {}, 0.0).unwrap_err().to_string()
}

#[test]
fn keys_that_no_layer_can_follow_are_refused_by_name() {
    let ratios = |of: &[u32]| V::Array(MetaArray::U32(of.to_vec()));
    for (key, value, said) in [
        ("attention.compress_ratios", ratios(&[0, 8, 128]), "found 8, wanted 0, 4 or 128"),
        ("attention.compress_ratios", ratios(&[0, 4]), "found 2 numbers, wanted one a layer: 3"),
        ("attention.head_count_kv", V::U32(2), "found 2, wanted 1"),
        ("attention.value_length", V::U32(4), "1 head of 8: keys are the values"),
        ("attention.output_group_count", V::U32(3), "a divisor of 2 heads"),
        ("attention.indexer.key_length", V::U32(2), "at least the 4 elements that are rotated"),
        ("expert_gating_func", V::U32(3), "1, 2 or 4"),
        ("expert_gating_func", V::U32(5), "0 to 4"),
        ("embedding_length_out", V::U32(16), "found 16, wanted 32"),
        ("hyper_connection.count", V::U32(0), "found 0"),
    ] {
        let error = refused(key, value);
        assert!(error.contains(key) && error.contains(said), "{key}: {error}");
    }
}

#[test]
fn a_table_of_ids_is_of_integers_below_the_number_of_experts() {
    for id in [4.0, -1.0] {
        let error = lowered(|_| None, |_| {}, id).unwrap_err();
        assert!(matches!(&error, LowerError::Ids { name, below: 4 } if name == TABLE), "{error}");
    }
    let floats = |table: &mut TensorTable| table.get_mut(TABLE).unwrap().1 = Format::F32.into();
    let error = lowered(|_| None, floats, 0.0).unwrap_err();
    assert!(matches!(&error, LowerError::IdsType { found, .. } if *found == Format::F32), "{error}");
    let missing = |table: &mut TensorTable| drop(table.remove(TABLE));
    assert!(matches!(lowered(|_| None, missing, 0.0), Err(LowerError::MissingTensor { .. })));
    // Integers that nobody asks for are told as any other tensor.
    let stray = |table: &mut TensorTable| drop(table.insert("blk.0.ids".into(), (vec![3], GgmlType::I32)));
    assert!(matches!(lowered(|_| None, stray, 0.0), Err(LowerError::UnusedTensors { .. })));
    // And one in the place of a matrix as one of a type that is not decoded.
    let matrix = |table: &mut TensorTable| table.get_mut("output.weight").unwrap().1 = GgmlType::I32;
    assert!(matches!(lowered(|_| None, matrix, 0.0), Err(LowerError::TensorType { .. })));
}

#[test]
fn the_bias_for_images_is_left_out_by_name() {
    let vision = |table: &mut TensorTable| {
        drop(table.insert("blk.1.exp_probs_b_vl.bias".into(), (vec![4], Format::F32.into())));
    };
    let (_, graph) = lowered(|_| None, vision, 0.0).unwrap();
    assert_eq!(graph.left_out.len(), 1);
    assert!(graph.left_out[0].reason.contains("images"), "{:?}", graph.left_out);
}

#[test]
fn states_are_rows_of_positions_and_windows_of_sequences() {
    let (config, graph) = lowered(|_| None, |_| {}, 0.0).unwrap();
    let states: Vec<_> =
        graph.states.iter().map(|s| (s.layer.index(), s.role, s.shape.clone(), s.lifetime)).collect();
    let (all, near) = (Lifetime::PerToken { window: None }, Lifetime::PerToken { window: Some(5) });
    let of_sequence = Lifetime::PerSequence;
    assert_eq!(
        states,
        [
            (0, StateRole::Key, vec![1, 8], near),
            // Beside entries, which have a row for every position, so have keys.
            (1, StateRole::Key, vec![1, 8], all),
            // Of the first eight channels two windows of 4, of the last eight one; a and b.
            (1, StateRole::Window, vec![8, 2 * 12], of_sequence),
            (1, StateRole::Entry, vec![1, 8], all),
            (1, StateRole::Window, vec![8, 2 * 12], of_sequence),
            (1, StateRole::IndexKey, vec![1, 8], all),
            (2, StateRole::Key, vec![1, 8], all),
            (2, StateRole::Window, vec![8, 2 * 128], of_sequence),
            (2, StateRole::Entry, vec![1, 8], all),
        ]
    );
    assert_eq!(graph.rewind(), Rewind::Checkpoint);
    assert!(graph.state_stages().is_empty(), "no stage shows what a window holds");
    assert_eq!(config.hyper.map(|h| (h.streams, h.iterations)), Some((2, 3)));
    // Entries turn as the first of their window, results back.
    let tables: Vec<_> = graph.rope_tables.iter().map(|t| (t.theta as u32, t.behind, t.back)).collect();
    assert_eq!(
        tables,
        [
            (10_000, 0, false),
            (10_000, 0, true),
            (160_000, 0, false),
            (160_000, 3, false),
            (160_000, 0, true),
            (160_000, 127, false)
        ]
    );
}

#[test]
fn gates_and_limits_are_the_models() {
    let (_, graph) = lowered(|_| None, |_| {}, 0.0).unwrap();
    let mut by_token = Vec::new();
    for node in &graph.nodes {
        match &node.op {
            Op::GivenExperts(g) => {
                assert_eq!((g.gate, g.norm_topk_prob, g.divisor), (GateKind::SqrtSoftplus, true, 1));
                by_token.push(node.layer.unwrap().index());
            }
            Op::Router(r) => {
                assert_eq!(r.gate, GateKind::SqrtSoftplus);
                assert!(r.selection_bias.is_some() && r.scale == 1.5);
            }
            Op::GatedAct { activation } => {
                let limit = if node.name == "swiglu" { 0.5 } else { 0.25 };
                assert_eq!(*activation, ActivationFn::BoundedSwiglu { limit }, "{}", node.name);
            }
            _ => {}
        }
    }
    assert_eq!(by_token, [0]);
}
