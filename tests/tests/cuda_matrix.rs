//! Random shapes of every op on the CUDA backend's host harness against the reference: 300 an op, spread over the formats.

use moe_run_tests::cli::finish;
use moe_run_tests::{CudaHarness, fixtures, random_shapes};
use std::process::Command;

#[test]
fn random_shapes_of_every_op() {
    random_shapes::every_op(random_shapes::ALL, &|_| vec![("cuda".into(), &CudaHarness)]);
}

/// The kernels of chips before compute capability 8.0, for the ops that have others: the test above in a process of its own,
/// whose environment leaves the matrix units out.
#[test]
fn random_shapes_without_matrix_units() {
    if !fixtures::full() {
        println!("SKIPPED: 300 shapes without matrix units (scripts/test.sh --full runs them)");
        return;
    }
    for op in ["matmul", "expert_matmul", "attention"] {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "random_shapes_of_every_op", "--nocapture"]);
        command.env("MOE_OP", op).env("MOE_RUN_CUDA_OFF", "matrix-units");
        let found = finish(command.output().expect("starts")).succeeded();
        assert!(found.stdout.contains(&format!("{op}: 300 shapes, worst ")), "{found:#?}");
        print!("{}", found.stdout);
    }
}
