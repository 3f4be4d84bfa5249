//! The stand-in for NVIDIA's driver is strict: every mistake that the CUDA backend could make is answered as the driver
//! answers it. What it lets pass is what cuda_driver.rs runs.

use moe_run_tests::{cli, fixtures, stand_in};
use std::collections::BTreeMap;

// The driver's numbers.
const INVALID_VALUE: i32 = 1;
const NOT_INITIALIZED: i32 = 3;
const INVALID_CONTEXT: i32 = 201;
const NO_BINARY_FOR_GPU: i32 = 209;
const INVALID_PTX: i32 = 218;
const UNSUPPORTED_PTX_VERSION: i32 = 222;
const INVALID_HANDLE: i32 = 400;
const NOT_FOUND: i32 = 500;
const ILLEGAL_ADDRESS: i32 = 700;
const CONTEXT_IS_DESTROYED: i32 = 709;
const CAPTURE_UNSUPPORTED: i32 = 900;
const CAPTURE_INVALIDATED: i32 = 901;
const CAPTURE_UNMATCHED: i32 = 903;
const CAPTURED_EVENT: i32 = 907;
const CAPTURE_WRONG_THREAD: i32 = 908;

#[test]
fn every_mistake_is_answered() {
    let Some(folder) = stand_in::folder() else { return };
    let library = folder.join("libcuda.so.1");
    let ptx = fixtures::crate_dir().join("stand-in/add.ptx");
    let program = env!("CARGO_BIN_EXE_misuse-driver");
    let found = cli::run(program, [library.to_str().unwrap(), ptx.to_str().unwrap()]).succeeded();
    let pair = |line: &str| -> (String, i32) {
        let (what, code) = line.rsplit_once(' ').expect("what and a code");
        (what.to_owned(), code.parse().expect("a code"))
    };
    let found: BTreeMap<String, i32> = found.stdout.lines().map(pair).collect();
    let mut wanted = vec![
        ("allocate-before-init", NOT_INITIALIZED),
        ("allocate-without-context", INVALID_CONTEXT),
        ("allocate-on-another-thread", INVALID_CONTEXT),
        ("free-unknown", INVALID_VALUE),
        ("fill-outside", INVALID_VALUE),
        ("synchronize-null-stream", INVALID_HANDLE),
        ("destroy-unknown-event", INVALID_HANDLE),
        ("early-read", 0),
        ("free-memory-of-queued-copy", INVALID_VALUE),
        ("late-read", 1),
        ("load-no-ptx", INVALID_PTX),
        ("load-newer-ptx", UNSUPPORTED_PTX_VERSION),
        ("load-newer-chip", NO_BINARY_FOR_GPU),
        ("load-other-parameters", INVALID_PTX),
        ("load-fewer-parameters", INVALID_PTX),
        ("unknown-function", NOT_FOUND),
        ("first-launch-while-recording", CAPTURE_UNSUPPORTED),
        ("right-launch", 0),
        ("too-many-threads", INVALID_VALUE),
        ("no-blocks", INVALID_VALUE),
        ("too-much-shared-memory", INVALID_VALUE),
        ("pointer-to-nothing", INVALID_VALUE),
        ("overlap-without-wait", INVALID_VALUE),
        ("overlap-with-early-read", INVALID_VALUE),
        ("time-of-untimed-event", INVALID_HANDLE),
        ("end-nothing", CAPTURE_UNMATCHED),
        ("launch-that-will-fail", 0),
        ("call-before-it-ran", 0),
        ("synchronize", ILLEGAL_ADDRESS),
        ("allocate-after", ILLEGAL_ADDRESS),
        ("copy-after", ILLEGAL_ADDRESS),
        ("after-release", CONTEXT_IS_DESTROYED),
    ];
    // A relaxed recording leaves the thread its unsafe calls, and may be ended by any.
    wanted.extend([
        ("relaxed-synchronize-while-recording", CAPTURE_UNSUPPORTED),
        ("relaxed-end-spoiled", CAPTURE_INVALIDATED),
        ("relaxed-allocate-while-recording", 0),
        ("relaxed-end-after-allocation", 0),
        ("relaxed-wait-for-recorded-event", CAPTURED_EVENT),
        ("relaxed-end-on-another-thread", 0),
    ]);
    let mut wanted: BTreeMap<String, i32> =
        wanted.into_iter().map(|(what, code)| (what.to_owned(), code)).collect();
    let strict = [
        ("synchronize-while-recording", CAPTURE_UNSUPPORTED),
        ("end-spoiled", CAPTURE_INVALIDATED),
        ("allocate-while-recording", CAPTURE_UNSUPPORTED),
        ("end-after-allocation", CAPTURE_INVALIDATED),
        ("wait-for-recorded-event", CAPTURED_EVENT),
        ("end-on-another-thread", CAPTURE_WRONG_THREAD),
    ];
    for mode in ["global", "thread"] {
        wanted.extend(strict.map(|(what, code)| (format!("{mode}-{what}"), code)));
    }
    assert_eq!(found, wanted);
}
