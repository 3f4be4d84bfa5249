//! Which device: a GPU by index or name, or the host harness.

use super::driver::{Driver, DriverError, DriverInfo, harness, nvidia};
use super::{HOST_HARNESS, NAME};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{DeviceInfo, DeviceKind};
use std::sync::Arc;

fn describe(index: usize, info: DriverInfo) -> DeviceInfo {
    let kind = match (&info.unsupported, info.software) {
        (Some(_), _) => DeviceKind::Unsupported,
        (None, true) => DeviceKind::Software,
        (None, false) => DeviceKind::DiscreteGpu,
    };
    let mut details = info.details;
    details.extend(info.unsupported.map(|why| ("not usable".into(), why)));
    DeviceInfo { backend: NAME, index, name: info.name, kind, details, memory_bytes: Some(info.memory_bytes) }
}

/// The GPUs that NVIDIA's driver lists.
pub(super) fn list() -> Result<Vec<DeviceInfo>, BackendError> {
    let found = nvidia::list().map_err(|e| error(NAME, e))?;
    Ok(found.into_iter().enumerate().map(|(i, info)| describe(i, info)).collect())
}

/// Opens the device of `--device`: nothing (the first GPU that can be used), an index, a part of a name, or `host-harness`.
pub(super) fn open(wanted: Option<&str>) -> Result<Arc<dyn Driver>, BackendError> {
    let index = match wanted {
        Some(HOST_HARNESS) => return harness::open().map_err(|e| error(HOST_HARNESS, e)),
        None => {
            let all = nvidia::list().map_err(|e| error(NAME, e))?;
            // Where none can be used, opening the first says why.
            all.iter().position(|d| d.unsupported.is_none()).unwrap_or(0)
        }
        Some(text) => match text.parse() {
            Ok(index) => index,
            Err(_) => {
                let names: Vec<String> =
                    nvidia::list().map_err(|e| error(NAME, e))?.into_iter().map(|d| d.name).collect();
                let lower = text.to_ascii_lowercase();
                let found = names.iter().position(|n| n.to_ascii_lowercase().contains(&lower));
                found.ok_or_else(|| BackendError::Option {
                    backend: NAME,
                    option: "--device",
                    found: text.to_owned(),
                    wanted: format!("an index, {HOST_HARNESS}, or a part of {}", names.join(", ")),
                })?
            }
        },
    };
    nvidia::open(index).map_err(|e| error(NAME, e))
}

/// A driver's error in the words of all backends.
pub(super) fn error(device: &str, error: DriverError) -> BackendError {
    match error {
        DriverError::NoDevice { detail, advice } => BackendError::NoDevice { backend: NAME, detail, advice },
        DriverError::OutOfMemory { wanted_bytes, free_bytes } => BackendError::OutOfMemory {
            what: format!("memory of {device}"),
            wanted_bytes,
            available_bytes: free_bytes,
            advice: "another process may hold memory (see nvidia-smi); try a smaller --ctx-size, --kv-type q8_0 or a \
                     smaller model"
                .into(),
        },
        DriverError::Failed(detail) => {
            BackendError::Device { backend: NAME, device: device.to_owned(), detail }
        }
    }
}
