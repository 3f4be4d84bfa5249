//! Where the time of a test goes: the time of each launch, added up by what it computes.

use std::{collections::BTreeMap, time::Duration};

use moe_run_backends::{BackendError, KvType, Observer, ValueAccess};
use moe_run_graph::{
    cost::{Cost, launch_cost},
    passes::{Launch, Plan},
};
use serde::Serialize;

use super::measure::Test;

/// A test's launches by kind, the dearest first.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// The test's name.
    pub test: String,
    /// Threads of the processor; 1 on other devices.
    pub threads: usize,
    /// Time in launches. Launches are held one from another, so a run without a profile may be faster.
    pub seconds: f64,
    /// The kinds.
    pub ops: Vec<OpTime>,
}

impl Profile {
    /// A table of its kinds.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "\n{}, {} threads: {:.3} ms in launches\n\n\
             | op | launches | ms | share | GB/s | GFLOP/s |\n|---|---:|---:|---:|---:|---:|\n",
            self.test,
            self.threads,
            self.seconds * 1e3
        );
        for op in &self.ops {
            text.push_str(&format!(
                "| {} | {} | {:.3} | {:.1} % | {:.1} | {:.1} |\n",
                op.op,
                op.launches,
                op.seconds * 1e3,
                op.share * 100.0,
                op.gb_per_second,
                op.flops as f64 / op.seconds / 1e9
            ));
        }
        text
    }
}

/// All launches of a kind.
#[derive(Clone, Debug, Serialize)]
pub struct OpTime {
    /// The op, or the group of ops that runs as one launch.
    pub op: &'static str,
    /// How many there were.
    pub launches: usize,
    /// Their time.
    pub seconds: f64,
    /// Of the time in all launches.
    pub share: f64,
    /// Weights and KV rows that they move, by the plan.
    pub bytes: u64,
    /// Arithmetic of their products, by the plan.
    pub flops: u64,
    /// `bytes` over `seconds`, in 10⁹ bytes a second.
    pub gb_per_second: f64,
}

/// Adds up the launches of a test's steps.
pub struct Profiler {
    kv_type: KvType,
    kinds: BTreeMap<&'static str, (usize, Duration, Cost)>,
}

impl Profiler {
    /// A profiler of steps whose KV cache is of this type.
    pub fn new(kv_type: KvType) -> Profiler {
        Profiler { kv_type, kinds: BTreeMap::new() }
    }

    /// The sums so far.
    pub fn finish(self, test: Test, threads: usize) -> Profile {
        let seconds: f64 = self.kinds.values().map(|(_, time, _)| time.as_secs_f64()).sum();
        let op_time = |(op, (launches, time, cost)): (_, (usize, Duration, Cost))| OpTime {
            op,
            launches,
            seconds: time.as_secs_f64(),
            share: time.as_secs_f64() / seconds,
            bytes: cost.streamed_bytes(),
            flops: cost.flops,
            gb_per_second: cost.streamed_bytes() as f64 / time.as_secs_f64() / 1e9,
        };
        let mut ops: Vec<OpTime> = self.kinds.into_iter().map(op_time).collect();
        ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Profile { test: test.name(), threads, seconds, ops }
    }
}

impl Observer for Profiler {
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let (launches, time, cost) = self.kinds.entry(launch.pattern).or_default();
        *launches += 1;
        *time += elapsed;
        *cost += launch_cost(plan, launch, values.sizes(), &|elems| self.kv_type.row_bytes(elems));
        Ok(())
    }
}
