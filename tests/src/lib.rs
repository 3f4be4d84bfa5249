//! Shared helpers of the tests: fixtures, stage files, running a model with every tap collected.
//!
//! Fixtures live in `tests/fixtures` and `tests/models`. Those too large to be carried lie in the folder that the
//! environment variable `MOE_FIXTURES` names; a test that wants one which is not there says so loudly and is skipped.

pub mod cli;
pub mod collect;
pub mod fixtures;
pub mod stages;

use moe_run_backends::{Backend, cuda, registry};

/// A backend, and the device that tests run it on.
pub struct Subject {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// What `--device` would be.
    pub device: Option<String>,
}

/// Every backend of this build that has a device here; CUDA's kernels always run, on the host harness.
#[must_use]
pub fn subjects() -> Vec<Subject> {
    let all = registry::all().into_iter().filter_map(|backend| {
        let has_device = backend.devices().is_ok_and(|d| !d.is_empty());
        let device = (backend.name() == cuda::NAME).then(|| cuda::HOST_HARNESS.to_owned());
        (has_device || device.is_some()).then_some(Subject { backend, device })
    });
    all.collect()
}

/// Relative L2 distance ‖a − b‖ / ‖b‖ in f64; infinite where either side is not finite or the lengths differ.
#[must_use]
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || a.iter().chain(b).any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    if norm == 0.0 {
        return if difference == 0.0 { 0.0 } else { f64::INFINITY };
    }
    (difference / norm).sqrt()
}
