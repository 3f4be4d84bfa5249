//! Contexts that no machine holds are refused by every backend: no allocation that fails ends the process, no count overflows.

use moe_run_backends::{BackendError, CompileOptions, KvType, Opened, Progress, registry};
use moe_run_graph::Model;
use moe_run_tests::cli::run;
use moe_run_tests::fixtures;
use std::sync::{Arc, Mutex};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");
const BACKENDS: [&[&str]; 5] = [
    &["--backend", "auto"],
    &["--backend", "reference"],
    &["--backend", "cpu"],
    &["--backend", "cuda", "--device", "host-harness"],
    &["--backend", "wgpu"],
];

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    for backend in BACKENDS {
        let args = ["--tokens", "1,2", "-n", "1", "-c", "4294967295"];
        let finished = run(PROGRAM, args.iter().chain(backend).copied());
        // A machine without an adapter has no wgpu; where memory is not told, a system may give whatever it is asked for.
        let is_told = cfg!(target_os = "linux") && backend[1] != "wgpu";
        if !is_told && (finished.code == 0 || finished.stderr.contains("no device")) {
            continue;
        }
        assert_eq!(finished.code, 4, "{backend:?}: {finished:#?}");
        assert!(finished.stderr.contains("--ctx-size"), "{backend:?}: {finished:#?}");
    }
}

#[test]
fn positions_beyond_32_bits_are_refused() {
    for backend in BACKENDS {
        for args in [
            &["--tokens", "1,2", "-n", "1", "-c", "4294967296"][..],
            &["--tokens", "1,2", "-n", "1", "-c", "9223372036854775807"],
            &["bench", "-p", "0", "-n", "1000000000000"],
            &["bench", "-p", "9223372036854775807", "-n", "0", "-d", "18446744073709551615"],
        ] {
            let finished = run(PROGRAM, args.iter().chain(backend).copied());
            assert_eq!(finished.code, 3, "{backend:?} {args:?}: {finished:#?}");
            let said = finished.stderr.contains("32 bits") || finished.stderr.contains("no device");
            assert!(said, "{backend:?} {args:?}: {finished:#?}");
        }
    }
}

/// Every backend says once what it has opened, with the model's numbers, before it loads anything; and nothing where it
/// refuses.
#[test]
fn what_is_opened_is_told_before_it_is_loaded() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    for (name, device) in [("reference", None), ("cpu", None), ("cuda", Some("host-harness")), ("wgpu", None)]
    {
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let (opened_to, progress_to) = (Arc::clone(&events), Arc::clone(&events));
        let tell = move |opened: &Opened<'_>| {
            let need = opened.memory;
            let (kv_type, stored) = (opened.info.kv_type, need.kv_stored);
            assert_eq!((opened.info.backend, kv_type, opened.ctx_size), (name, KvType::F16, 1000));
            assert_eq!(stored, if name == "reference" { KvType::F32 } else { KvType::F16 });
            // Of each of 4 layers, keys and values of 2 heads of 64.
            let rows = 4 * 2 * 128 * stored.row_bytes(1) as u64 * 1000;
            // CUDA counts RoPE's angles with it: both grow with the context.
            assert!((rows..rows + rows / 2).contains(&need.kv_cache_bytes), "{name}: {need:?}");
            assert!((9_000_000..12_000_000).contains(&need.weight_bytes), "{name}: {need:?}");
            assert!(need.wanted_bytes() > need.weight_bytes + need.kv_cache_bytes, "{name}: {need:?}");
            opened_to.lock().unwrap().push(format!("{} layers", opened.num_layers));
        };
        let options = CompileOptions {
            ctx_size: 1000,
            device: device.map(str::to_owned),
            opened: Some(Arc::new(tell)),
            progress: Some(Arc::new(move |p: Progress| progress_to.lock().unwrap().push(p.what.to_owned()))),
            ..CompileOptions::default()
        };
        let Ok(backend) = registry::by_name(name) else { continue };
        match backend.compile(&model.graph, model.file.clone(), &options) {
            Err(BackendError::NoDevice { .. }) => eprintln!("SKIPPED: {name} has no device here"),
            compiled => {
                drop(compiled.unwrap_or_else(|e| panic!("{name}: {e}")));
                let events = std::mem::take(&mut *events.lock().unwrap());
                assert_eq!(events[0], "4 layers", "{name}: {events:?}");
                assert_eq!(events.iter().filter(|e| e.contains("layers")).count(), 1, "{name}: {events:?}");
                let uploads = events.iter().any(|e| e == "uploading weights");
                assert_eq!(uploads, matches!(name, "cuda" | "wgpu"), "{name}: {events:?}");
            }
        }
        let refused = CompileOptions { ctx_size: usize::MAX, ..options };
        assert!(backend.compile(&model.graph, model.file.clone(), &refused).is_err(), "{name}");
        assert!(events.lock().unwrap().is_empty(), "{name}: nothing is opened");
    }
}
