//! Beside stage 6: an [`Observer`] that adds up each launch's time over steps, for dumps and benches.
//!
//! Input: what [`Executable::step`](moe_run_runtime::Executable::step) reports after each launch. Output: mean seconds by launch of
//! one plan. A step that is watched is held between launches, so the sum is not the time of a step that is not; shares
//! and rates are what a profile is for. Absent on purpose: bytes and FLOPs, which the plan gives
//! ([`moe_run_graph::cost`]).

use moe_run_graph::dump::MeasuredTimes;
use moe_run_graph::ir::StepSizes;
use moe_run_graph::passes::{Launch, Plan};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Observer, ValueAccess};
use std::time::Duration;

/// Sums of times, a list for each plan that was run: steps of other sizes may run another.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    plans: Vec<PlanTimes>,
}

#[derive(Debug, Clone)]
struct PlanTimes {
    max_sizes: StepSizes,
    launches: Vec<Duration>,
    steps: usize,
}

impl PlanTimes {
    fn is_of(&self, plan: &Plan) -> bool {
        self.max_sizes == plan.max_sizes && self.launches.len() == plan.launches.len()
    }
}

impl Profile {
    /// Nothing measured yet.
    #[must_use]
    pub fn new() -> Profile {
        Profile::default()
    }

    /// The means of a plan's launches; `None` if no step of it was complete.
    #[must_use]
    pub fn of(&self, plan: &Plan) -> Option<MeasuredTimes> {
        let times = self.plans.iter().find(|t| t.is_of(plan) && t.steps > 0)?;
        let mean = |sum: &Duration| sum.as_secs_f64() / times.steps as f64;
        Some(MeasuredTimes { steps: times.steps, launch_seconds: times.launches.iter().map(mean).collect() })
    }
}

impl Observer for Profile {
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        _values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let known = self.plans.iter().position(|t| t.is_of(plan));
        let at = known.unwrap_or_else(|| {
            let launches = vec![Duration::ZERO; plan.launches.len()];
            self.plans.push(PlanTimes { max_sizes: plan.max_sizes, launches, steps: 0 });
            self.plans.len() - 1
        });
        let times = &mut self.plans[at];
        times.launches[launch.id.index()] += elapsed;
        times.steps += usize::from(launch.id.index() + 1 == plan.launches.len());
        Ok(())
    }
}
