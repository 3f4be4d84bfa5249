//! The stand-in for NVIDIA's driver (stand-in/stand_in.h): runs programs of this build with it.

use crate::cli::{Finished, finish};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The folder that holds the stand-in as `libcuda.so.1`; `None`, with a loud line, where this build can have none.
///
/// # Panics
/// Where it should have been made, and its compilation failed.
#[must_use]
pub fn folder() -> Option<&'static Path> {
    let (folder, broken) = (env!("MOE_STAND_IN"), env!("MOE_STAND_IN_BROKEN"));
    assert!(broken.is_empty(), "the stand-in for NVIDIA's driver does not compile: {broken}");
    if folder.is_empty() {
        eprintln!("SKIPPED: no stand-in for NVIDIA's driver: {}", env!("MOE_STAND_IN_MISSING"));
        return None;
    }
    Some(Path::new(folder))
}

/// What a program left, and how often it did what on the stand-in.
#[derive(Debug)]
pub struct OnStandIn {
    /// Exit code and outputs.
    pub finished: Finished,
    /// The stand-in's report.
    pub counts: BTreeMap<String, u64>,
}

impl OnStandIn {
    /// How often something was done.
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }
}

/// Runs a program to its end with the stand-in as its driver and variables in its environment.
///
/// # Panics
/// Where it cannot be started, and where it used the driver in a way that the driver forbids.
#[must_use]
pub fn run(folder: &Path, program: &str, environment: &[(&str, &str)], args: &[&str]) -> OnStandIn {
    let temporary = tempfile::tempdir().expect("temporary directory");
    let report = temporary.path().join("report");
    let mut command = Command::new(program);
    command.env_remove("CUDA_VISIBLE_DEVICES").env_remove("MOE_RUN_CUDA_OFF");
    command.env("LD_LIBRARY_PATH", folder).env("STAND_IN_REPORT", &report);
    command.envs(environment.iter().copied()).args(args);
    let finished = finish(command.output().unwrap_or_else(|e| panic!("{program}: {e}")));
    assert!(!finished.stderr.contains("stand-in: misuse"), "{environment:?} {args:?}: {finished:#?}");
    // A program that found no device did nothing.
    let report = std::fs::read_to_string(report).unwrap_or_default();
    let pair = |line: &str| -> Option<(String, u64)> {
        let (what, number) = line.rsplit_once(' ')?;
        Some((what.to_owned(), number.parse().ok()?))
    };
    OnStandIn { finished, counts: report.lines().filter_map(pair).collect() }
}
