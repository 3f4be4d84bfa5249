//! `moe-run diff`: numbers by hand, near-ties, exit codes.

use super::BINARY;
use moe_run_inspect::taps::tensor_file::{aprt_header, npy_header, safetensors_header};
use moe_run_tests::cli::{Finished, run};
use std::path::{Path, PathBuf};

fn le(elems: &[f32]) -> Vec<u8> {
    elems.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn npy(dir: &Path, name: &str, shape: &[usize], elems: &[f32]) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, [npy_header(shape), le(elems)].concat()).unwrap();
    path
}

fn diff(a: &Path, b: &Path, more: &[&str]) -> Finished {
    let (a, b) = (a.display().to_string(), b.display().to_string());
    run(BINARY, ["diff", &a, &b].into_iter().chain(more.iter().copied()))
}

#[test]
fn two_files() {
    let dir = tempfile::tempdir().unwrap();
    let a = npy(dir.path(), "a.npy", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let b = npy(dir.path(), "b.npy", &[2, 2], &[1.0, 2.0, 3.0, 5.0]);
    let found = diff(&a, &b, &["--json", "--limit", "3"]);
    assert_eq!(found.code, 1);
    let pair = &found.json()["pairs"][0];
    assert_eq!((&pair["elems"], &pair["max"]["abs"]), (&4.into(), &1.0.into()));
    assert_eq!((&pair["at"]["position"], &pair["at"]["channel"]), (&1.into(), &1.into()));
    assert!((pair["relative_l2"].as_f64().unwrap() - 1.0 / 39f64.sqrt()).abs() < 1e-12);
    assert_eq!(pair["largest"].as_array().unwrap().len(), 1, "equal elements are no differences");
    assert_eq!(diff(&a, &b, &["--tolerance", "0.2"]).code, 0);
    assert_eq!(diff(&a, &a, &[]).code, 0);
    // The same values as APRT, which has no shape.
    let aprt = dir.path().join("a.bin");
    std::fs::write(&aprt, [aprt_header(Some(0), 4).unwrap().to_vec(), le(&[1.0, 2.0, 3.0, 4.0])].concat())
        .unwrap();
    assert_eq!(diff(&aprt, &a, &[]).code, 0);
    // Where a manifest lies beside it, that has the shape.
    let manifest = r#"{"tensors": [{"stage": "attn_norm", "file": "a.bin", "shape": [2, 2]}]}"#;
    std::fs::write(dir.path().join("manifest.json"), manifest).unwrap();
    let at = &diff(&aprt, &b, &["--json"]).json()["pairs"][0]["at"];
    assert_eq!((&at["position"], &at["channel"]), (&1.into(), &1.into()));
    let flat = dir.path().join("flat.bin");
    std::fs::write(&flat, [aprt_header(Some(0), 4).unwrap().to_vec(), le(&[1.0, 2.0, 3.0, 5.0])].concat())
        .unwrap();
    let at = diff(&aprt, &flat, &["--json"]).json()["pairs"][0]["at"].clone();
    assert_eq!((&at["position"], &at["channel"]), (&1.into(), &1.into()));
}

#[test]
fn a_nan_on_one_side_is_beyond_any_tolerance() {
    let dir = tempfile::tempdir().unwrap();
    let a = npy(dir.path(), "a.npy", &[2], &[1.0, f32::NAN]);
    let b = npy(dir.path(), "b.npy", &[2], &[1.0, 2.0]);
    let found = diff(&a, &b, &["--tolerance", "1e9", "--json"]);
    assert_eq!((found.code, &found.json()["pairs"][0]["relative_l2"]), (1, &"Infinity".into()));
    assert_eq!(diff(&a, &a, &[]).code, 0, "the same NaN on both sides is no difference");
}

#[test]
fn unreadable_or_mismatched_input_is_2() {
    let dir = tempfile::tempdir().unwrap();
    let a = npy(dir.path(), "a.npy", &[2, 2], &[0.0; 4]);
    let b = npy(dir.path(), "b.npy", &[4], &[0.0; 4]);
    let junk = dir.path().join("junk.bin");
    let mut cases = vec![(dir.path().join("absent"), "cannot read"), (b, "equal shapes")];
    std::fs::write(&junk, b"APRT\x00\x00\x00\x00\xff\xff\xff\xff1234").unwrap();
    cases.push((junk, "4294967295 elements"));
    let huge = dir.path().join("huge.npy");
    std::fs::write(&huge, npy_header(&[1 << 40, 1 << 40])).unwrap();
    cases.push((huge, "does not fit"));
    let lying = dir.path().join("lying.safetensors");
    std::fs::write(&lying, safetensors_header(&[("x".into(), vec![1000])], &[])).unwrap();
    cases.push((lying, "does not fit"));
    for (path, wanted) in cases {
        let found = diff(&a, &path, &[]);
        assert!(found.code == 2 && found.stderr.contains(wanted), "{}: {found:#?}", path.display());
    }
    assert_eq!(diff(&a, &a, &["--tolerance", "-1"]).code, 2);
}

#[test]
fn directories_pair_by_name_and_near_ties_are_told_from_bugs() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    // Position 0: the same experts in another order. Position 1: expert 2 instead of 1, which were 1e-5 apart.
    let logits_a = [0.5, 1.0, -1.0, 3.0, 2.00001, 2.00002];
    let logits_b = [0.5, 1.0, -1.0, 3.0, 2.00002, 2.00001];
    for (side, logits, ids, out) in [
        (&a, logits_a, [1.0, 0.0, 0.0, 2.0], [10.0, 20.0, 30.0, 99.0]),
        (&b, logits_b, [0.0, 1.0, 0.0, 1.0], [20.0, 10.0, 30.0, 40.0]),
    ] {
        npy(side, "layer-0/moe_logits.npy", &[2, 3], &logits);
        npy(side, "layer-0/moe_topk_ids.npy", &[2, 2], &ids);
        npy(side, "layer-0/ffn_out.npy", &[2, 2, 1], &out);
    }
    npy(&a, "layer-1/attn_norm.npy", &[1], &[1.0]);
    let found = diff(&a, &b, &["--tolerance", "1e-4", "--json"]);
    assert_eq!((found.code, &found.json()["verdict"]), (1, &"missing".into()), "{found:#?}");
    for (x, y) in [(&a, &b), (&b, &a)] {
        let found = diff(x, y, &["--tolerance", "1e-4"]);
        assert!(found.code == 1 && found.stdout.contains("missing on one side: 1;"), "{found:#?}");
    }
    let found = diff(&a, &b, &["--tolerance", "1e-4", "--allow-missing", "--json"]);
    assert_eq!((found.code, &found.json()["verdict"]), (0, &"within".into()), "{found:#?}");
    let report = found.json();
    let pair =
        |name: &str| report["pairs"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone();
    let ids = pair("layer-0/moe_topk_ids");
    assert_eq!(ids["flips"].as_array().unwrap().len(), 1);
    assert_eq!((&ids["flips"][0]["near_tie"], &ids["flips"][0]["row"]), (&true.into(), &1.into()));
    assert_eq!(
        pair("layer-0/ffn_out")["relative_l2"],
        0.0,
        "slots follow their experts; the flipped row is not judged"
    );
    assert_eq!(report["only_a"], serde_json::json!(["layer-1/attn_norm"]));
    assert!(diff(&a, &b, &["--tolerance", "1e-4"]).stdout.contains("a near-tie"));

    npy(&a, "layer-0/moe_logits.npy", &[2, 3], &[0.5, 1.0, -1.0, 3.0, 2.5, 1.5]);
    npy(&b, "layer-0/moe_logits.npy", &[2, 3], &[0.5, 1.0, -1.0, 3.0, 2.5, 1.5]);
    let found = diff(&a, &b, &["--tolerance", "1e9"]);
    assert!(found.code == 1 && found.stdout.contains("NOT a near-tie"), "{found:#?}");
}

#[test]
fn a_folder_and_a_file_are_told_apart_by_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["embedding.npy", "layer-0/attn_norm.npy"] {
        npy(&dir.path().join("a"), name, &[1], &[1.0]);
    }
    let found = diff(&dir.path().join("a"), &dir.path().join("a/layer-0/attn_norm.npy"), &[]);
    assert_eq!(found.code, 2, "{found:#?}");
    assert!(
        found.stderr.contains("the first has embedding and 1 more, the second only attn_norm;"),
        "{found:#?}"
    );
}
