//! The backends of this build, by name.

#[cfg(feature = "cpu")]
use moe_run_cpu::Cpu;
use moe_run_reference::Reference;
use moe_run_runtime::Backend;
use moe_run_runtime::BackendError;

/// Every backend of this build. The reference comes last: `auto` never chooses it.
#[must_use]
pub fn all() -> Vec<Box<dyn Backend>> {
    vec![
        #[cfg(feature = "cuda")]
        Box::new(moe_run_cuda::Cuda),
        #[cfg(feature = "wgpu")]
        Box::new(moe_run_wgpu::Wgpu::default()),
        #[cfg(feature = "cpu")]
        Box::new(Cpu),
        Box::new(Reference),
    ]
}

/// The backend of a name.
///
/// # Errors
/// [`BackendError::UnknownBackend`] with the names that exist.
pub fn by_name(name: &str) -> Result<Box<dyn Backend>, BackendError> {
    let backends = all();
    let known = backends.iter().map(|b| b.name()).collect();
    backends
        .into_iter()
        .find(|b| b.name() == name)
        .ok_or_else(|| BackendError::UnknownBackend { found: name.to_owned(), known })
}
