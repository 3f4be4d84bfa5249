//! The host harness sees what it promises to see; the embedded code is that of the sources.

#![expect(clippy::unwrap_used, reason = "test helpers stop the test")]

use super::code::Code;
use super::harness::{self, Schedule};
use super::{DeviceBuffer, Driver, DriverError, KernelLaunch, Param, nvidia};
use moe_run_graph::fnv::Fnv1a;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn launch(kernel: &'static str, blocks: u32, threads: u32, params: Vec<Param>) -> KernelLaunch {
    KernelLaunch { kernel, grid: [blocks, 1, 1], threads, shared_bytes: 0, params }
}

fn floats(driver: &Arc<dyn Driver>, values: &[f32]) -> DeviceBuffer {
    DeviceBuffer::from_bytes(driver, bytemuck::cast_slice(values)).unwrap()
}

fn read(buffer: &DeviceBuffer) -> Vec<f32> {
    buffer.read().unwrap().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The harness's message for a launch that must fail.
fn refused(driver: &Arc<dyn Driver>, launch: KernelLaunch) -> String {
    match driver.launch(&[launch]) {
        Err(DriverError::Failed(text)) => text,
        other => panic!("wanted a failed launch, got {other:?}"),
    }
}

#[test]
fn a_right_launch_runs() {
    let driver = harness::open().unwrap();
    let (a, b, y) = (floats(&driver, &[1.0; 40]), floats(&driver, &[2.0; 40]), floats(&driver, &[0.0; 40]));
    driver.launch(&[launch("add", 2, 32, vec![a.param(), b.param(), y.param(), Param::I32(40)])]).unwrap();
    assert_eq!(read(&y), [3.0; 40]);
}

#[test]
fn accesses_outside_an_array_are_named() {
    let driver = harness::open().unwrap();
    let (a, b, y) = (floats(&driver, &[1.0; 40]), floats(&driver, &[2.0; 40]), floats(&driver, &[0.0; 40]));
    // One element too many: the read at byte 160 of 160.
    let text = refused(&driver, launch("add", 2, 32, vec![a.param(), b.param(), y.param(), Param::I32(41)]));
    assert!(text.contains("kernel add, block (1, 0, 0), thread (8, 0, 0)"), "{text}");
    assert!(text.contains("byte offset 160 of an array of 160 bytes"), "{text}");
    // A slice is as long as its parameter says, though the allocation goes on.
    let text =
        refused(&driver, launch("add", 2, 32, vec![a.slice(0, 64), b.param(), y.param(), Param::I32(40)]));
    assert!(text.contains("thread (16, 0, 0)") && text.contains("an array of 64 bytes"), "{text}");
    // Null and misaligned.
    let text = refused(&driver, launch("add", 1, 32, vec![Param::NULL, b.param(), y.param(), Param::I32(1)]));
    assert!(text.contains("null pointer"), "{text}");
    let text =
        refused(&driver, launch("add", 1, 32, vec![a.slice(2, 60), b.param(), y.param(), Param::I32(1)]));
    assert!(text.contains("not aligned to 4 bytes"), "{text}");
    // Shared memory.
    let mut wrong = launch("fault_shared", 1, 64, vec![y.param(), Param::I32(16)]);
    wrong.shared_bytes = 64;
    let text = refused(&driver, wrong);
    assert!(text.contains("thread (16, 0, 0)") && text.contains("an array of 64 bytes"), "{text}");
}

#[test]
fn barriers_and_collectives_that_not_all_threads_reach_are_named() {
    let driver = harness::open().unwrap();
    let y = floats(&driver, &[0.0; 64]);
    driver.launch(&[launch("fault_barrier", 1, 64, vec![y.param(), Param::I32(64)])]).unwrap();
    let text = refused(&driver, launch("fault_barrier", 1, 64, vec![y.param(), Param::I32(63)]));
    assert!(text.contains("barrier not reached by all threads"), "{text}");
    assert!(text.contains("63 wait") && text.contains("1 have returned"), "{text}");
    let text = refused(&driver, launch("fault_collective", 1, 32, vec![y.param(), Param::I32(31)]));
    assert!(text.contains("warp collective not reached by all lanes"), "{text}");
}

#[test]
fn launch_parameters_are_checked() {
    let driver = harness::open().unwrap();
    let a = floats(&driver, &[1.0; 4]);
    let p = a.param();
    let text = refused(&driver, launch("add", 1, 32, vec![p, p, p]));
    assert!(text.contains("takes 4 parameters, the launch has 3"), "{text}");
    let text = refused(&driver, launch("add", 1, 32, vec![p, p, p, Param::F32(4.0)]));
    assert!(text.contains("parameter 3: the kernel takes an i32, the launch passes an f32"), "{text}");
    let text = refused(&driver, launch("no_such_kernel", 1, 32, vec![]));
    assert!(text.contains("no kernel named no_such_kernel"), "{text}");
    let text = refused(&driver, launch("add", 1, 33, vec![p, p, p, Param::I32(4)]));
    assert!(text.contains("whole warps"), "{text}");
    let gone = Param::Memory { address: p_address(p) + 4096, bytes: 16 };
    let text = refused(&driver, launch("add", 1, 32, vec![gone, p, p, Param::I32(4)]));
    assert!(text.contains("not inside any live allocation"), "{text}");
}

fn p_address(param: Param) -> u64 {
    match param {
        Param::Memory { address, .. } => address,
        _ => 0,
    }
}

#[test]
fn a_race_shows_between_schedules() {
    let run = |schedule| {
        let driver = harness::open_with(schedule).unwrap();
        let y = floats(&driver, &[0.0; 64]);
        driver.launch(&[launch("fault_race", 1, 64, vec![y.param()])]).unwrap();
        read(&y).iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_ne!(run(Schedule::Ascending), run(Schedule::Descending));
}

#[test]
fn a_recorded_graph_replays() {
    let driver = harness::open().unwrap();
    let (a, y) = (floats(&driver, &[1.0; 8]), floats(&driver, &[0.0; 8]));
    let graph = driver
        .capture(&[launch("add", 1, 32, vec![a.param(), y.param(), y.param(), Param::I32(8)])])
        .unwrap();
    assert_eq!(read(&y), [0.0; 8]);
    graph.replay().unwrap();
    graph.replay().unwrap();
    assert_eq!(read(&y), [2.0; 8]);
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let driver = harness::open().unwrap();
    assert!(
        matches!(driver.allocate(1 << 60), Err(DriverError::OutOfMemory { wanted_bytes, .. }) if wanted_bytes == 1 << 60)
    );
}

/// The kernel sources that NVRTC compiles, in order of their names.
fn sources() -> Vec<PathBuf> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let list = |dir: &str, extension: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(kernels.join(dir)).unwrap();
        let names = entries.map(|e| Path::new(dir).join(e.unwrap().file_name()));
        names.filter(|p| p.extension().is_some_and(|e| e == extension)).collect()
    };
    let mut all = list("", "cu");
    all.extend(list("common", "cuh"));
    all.sort();
    all
}

/// scripts/nvrtc-check.py writes kernels/ptx and the hash of the sources that it was made from.
#[test]
fn the_embedded_code_is_that_of_the_sources() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let mut hash = Fnv1a::default();
    for path in sources() {
        let name = path.to_str().unwrap().replace('\\', "/");
        let text = std::fs::read(kernels.join(&path)).unwrap();
        for part in [name.as_bytes(), &[0], &text, &[0]] {
            hash.add(part);
        }
    }
    for code in Code::all() {
        assert_eq!(
            code.sources(),
            Some(hash.text().as_str()),
            "run scripts/nvrtc-check.py --update and commit what it writes"
        );
    }
}

/// Every kernel that the harness runs has embedded code, and the other way round; the table lists the same.
#[test]
fn harness_code_and_table_hold_the_same_kernels() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let harness: BTreeSet<String> =
        harness::kernel_names().into_iter().filter(|n| !n.starts_with("fault_")).collect();
    assert!(harness.len() > 20, "{harness:?}");
    for code in Code::all() {
        for name in &harness {
            assert!(code.module_of(name).is_some(), "no code for {name} on {:?}", code.capability());
        }
    }
    let table = std::fs::read_to_string(kernels.join("ptxas-table.txt")).unwrap();
    let listed: BTreeSet<String> =
        table.lines().skip(2).filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect();
    assert_eq!(listed, harness);
}

/// What is in local memory is named in kernels/README.md, with its cause.
#[test]
fn the_table_has_no_unexplained_local_memory() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let table = std::fs::read_to_string(kernels.join("ptxas-table.txt")).unwrap();
    let mut found = Vec::new();
    for line in table.lines().skip(2) {
        let mut columns = line.split_whitespace();
        let kernel = columns.next().unwrap();
        for column in columns {
            let numbers: Vec<u32> = column.split('/').map(|n| n.parse().unwrap()).collect();
            let [_, spilled, local, _] = numbers[..] else { panic!("{line}") };
            if (spilled, local) != (0, 0) {
                found.push((kernel, spilled, local));
            }
        }
    }
    // Why is in kernels/README.md.
    let known = [
        ("compressed_attention", 32, 8),
        ("expert_matmul_q8", 16, 8),
        ("expert_matmul_q8", 16, 8),
        ("head_matmul_f32_t1", 24, 16),
        ("head_matmul_q8_t1", 16, 8),
        ("hyper_gates", 0, 256),
        ("hyper_gates", 0, 256),
        ("hyper_gates", 0, 256),
        ("hyper_gates", 0, 256),
        ("hyper_gates", 0, 256),
        ("matmul_f32_t1", 8, 8),
        ("matmul_f32_t8", 16, 8),
        ("route_gate_up", 20, 8),
    ];
    assert_eq!(found, known);
}

/// Launches overlap on 9.0: a kernel that did not wait for the one in front would read what is not there yet.
#[test]
fn every_kernel_of_chips_that_overlap_waits() {
    let code = Code::for_capability((9, 0)).unwrap();
    assert_eq!(code.capability(), (9, 0));
    let mut kernels = 0;
    for (module, text) in code.modules() {
        for entry in text.split(".entry ").skip(1) {
            kernels += 1;
            assert!(
                entry.contains("griddepcontrol.wait"),
                "{module}: {}",
                entry.lines().next().unwrap_or("")
            );
        }
    }
    assert!(kernels > 20, "{kernels}");
    assert_eq!(Code::for_capability((8, 9)).map(|c| c.capability()), Some((8, 0)));
    assert_eq!(Code::for_capability((12, 0)).map(|c| c.capability()), Some((9, 0)));
    assert!(Code::for_capability((7, 0)).is_none());
}

#[test]
fn a_machine_without_a_driver_says_what_was_looked_for() {
    match nvidia::open(0) {
        Err(DriverError::NoDevice { detail, advice }) => {
            assert!(
                detail.contains("libcuda") || detail.contains("GPU") || detail.contains("driver"),
                "{detail}"
            );
            assert!(advice.contains("--backend"), "{advice}");
        }
        Err(other) => panic!("{other}"),
        Ok(driver) => println!("this machine has {}", driver.info().name),
    }
}
