//! `moe-run devices`: what each backend of this build finds on this machine.

use moe_run_backends::{DeviceInfo, DeviceKind, registry};
use serde::Serialize;

use crate::{CliError, ExitCode, engine::human_bytes, output};

/// Arguments of `devices`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A backend, and what it found.
#[derive(Serialize, Debug)]
struct Found {
    backend: &'static str,
    devices: Vec<DeviceInfo>,
    /// Why there are none.
    error: Option<String>,
}

#[derive(Serialize, Debug)]
struct Report {
    schema_version: u32,
    backends: Vec<Found>,
}

/// Lists backends and devices. A backend without a device is listed with the reason; that is no error.
///
/// Errors: standard output cannot be written.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let backends: Vec<Found> = registry::all()
        .iter()
        .map(|backend| match backend.devices() {
            Ok(devices) => Found { backend: backend.name(), devices, error: None },
            Err(error) => {
                Found { backend: backend.name(), devices: Vec::new(), error: Some(error.to_string()) }
            }
        })
        .collect();
    if args.json {
        output::json(&Report { schema_version: 1, backends })?;
    } else {
        output::text(&backends.iter().map(describe).collect::<String>())?;
    }
    Ok(ExitCode::Ok)
}

fn describe(found: &Found) -> String {
    let mut text = format!("{}\n", found.backend);
    if found.devices.is_empty() {
        text.push_str(&format!("  none: {}\n", found.error.as_deref().unwrap_or("no device here")));
    }
    for device in &found.devices {
        let kind = match device.kind {
            DeviceKind::Cpu => "CPU",
            DeviceKind::DiscreteGpu => "GPU",
            DeviceKind::IntegratedGpu => "integrated GPU",
            DeviceKind::Software => "software rendering",
            DeviceKind::Unsupported => "cannot be used",
        };
        let memory = device.memory_bytes.map_or(String::new(), |bytes| format!(", {}", human_bytes(bytes)));
        text.push_str(&format!("  {}: {} ({kind}{memory})\n", device.index, device.name));
        for (key, value) in &device.details {
            text.push_str(&format!("     {key}: {value}\n"));
        }
    }
    text
}
