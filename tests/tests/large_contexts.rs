//! Contexts that no machine holds are refused by every backend: no allocation that fails ends the process, no count overflows.

use moe_run_tests::cli::run;

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
