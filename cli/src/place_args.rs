//! Options of commands that may run a model on several devices.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use moe_run_backends::{
    BackendError, partial_file,
    placed::{PlaceRequest, Wanted},
    placement,
};
use moe_run_graph::place::{ExpertUse, Placement};

use crate::{CliError, announce, inputs, output_file};

/// Experts of a layer at most, for files: more than any model has.
const MAX_EXPERTS: u64 = 65_536;

/// How several devices share a model.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PlaceArgs {
    /// Memory that a device of a --device list may take, such as cuda:0=8GiB; once for each
    #[arg(long, value_name = "DEVICE=SIZE", value_parser = device_memory, help_heading = "Backend")]
    pub device_memory: Vec<(String, u64)>,

    /// How the devices of a --device list share the model: auto, layers (whole ones), experts (all else on the first), or a file
    /// that --save-placement wrote
    #[arg(long, value_name = "auto|layers|experts|FILE.json", help_heading = "Backend")]
    pub place: Option<String>,

    /// What `trace --routing` wrote: experts that were chosen most go to the first devices
    #[arg(long, value_name = "FILE", help_heading = "Backend")]
    pub expert_stats: Option<PathBuf>,

    /// Write which device has what as JSON, for --place
    #[arg(long, value_name = "FILE", help_heading = "Backend")]
    pub save_placement: Option<PathBuf>,
}

impl PlaceArgs {
    fn is_given(&self) -> bool {
        !self.device_memory.is_empty()
            || self.place.is_some()
            || self.save_placement.is_some()
            || self.expert_stats.is_some()
    }

    /// What is asked for, where `--device` names devices with their backends, or `--place` a file that does.
    ///
    /// Errors: a device that no backend has; options that contradict each other; a file that is no placement.
    pub fn request(
        &self,
        backend: &str,
        device: Option<&str>,
    ) -> Result<Option<Arc<PlaceRequest>>, CliError> {
        if backend != "auto" {
            if self.is_given() {
                return Err(CliError::bad_input(format!(
                    "--backend {backend}: --device-memory, --place, --expert-stats and --save-placement are for several devices, \
                     which --device names with their backends, such as cuda:0,cpu; leave --backend out"
                )));
            }
            return Ok(None);
        }
        let wanted = match self.place.as_deref() {
            None | Some("auto") => Wanted::Auto,
            Some("layers") => Wanted::Layers,
            Some("experts") => Wanted::Experts,
            Some(file) if file.ends_with(".json") => Wanted::Given(given(Path::new(file))?),
            Some(other) => {
                return Err(CliError::bad_input(format!(
                    "--place {other}: wanted auto, layers, experts or a file whose name ends in .json"
                )));
            }
        };
        let devices: Vec<String> =
            device.map_or_else(Vec::new, |list| list.split(',').map(|d| d.trim().to_owned()).collect());
        if devices.is_empty() && !matches!(wanted, Wanted::Given(_)) {
            if self.is_given() {
                return Err(CliError::bad_input(
                    "--device-memory, --place, --expert-stats and --save-placement: no devices are named; give --device a list \
                     such as cuda:0,cpu",
                ));
            }
            return Ok(None);
        }
        if let Some(file) = &self.save_placement {
            output_file::check_name("--save-placement", file)?;
            output_file::check("--save-placement", Some(file))?;
        }
        let saved = self.save_placement.clone();
        let request = PlaceRequest {
            devices,
            memory: self.device_memory.clone(),
            wanted,
            used: self.expert_stats.as_deref().map(expert_use).transpose()?,
            placed: Some(Arc::new(move |placement: &Placement, lines: &[String]| {
                lines.iter().for_each(|line| announce::once(line));
                saved.as_deref().map_or(Ok(()), |file| save(file, placement))
            })),
        };
        match placement::check(&request) {
            Err(BackendError::UnknownBackend { found, known }) => Err(CliError::bad_input(format!(
                "--device {}: devices are numbered by backend, and '{found}' is none of {}; give --backend, too, or a list such \
                 as cuda:0,cpu (`moe-run devices` lists both)",
                device.unwrap_or_default(),
                known.join(", ")
            ))),
            Err(error) => Err(CliError::bad_input(error)),
            Ok(()) => Ok(Some(Arc::new(request))),
        }
    }
}

/// Refuses experts that are shared where a plan's launches are counted or timed: those are not among them.
///
/// Errors: they are.
pub fn check_no_experts(what: &str, request: Option<&PlaceRequest>) -> Result<(), CliError> {
    let shares = request.is_some_and(|request| match &request.wanted {
        Wanted::Experts => true,
        Wanted::Given(placement) => !placement.experts.is_empty(),
        Wanted::Auto | Wanted::Layers => false,
    });
    match shares {
        true => Err(CliError::unsupported(format!(
            "{what}: experts that several devices share are no launches of a plan, whose costs and times would leave them out; \
             wanted --place layers"
        ))),
        false => Ok(()),
    }
}

/// How often each expert was chosen, by layer, of a file that `trace --routing` wrote.
///
/// Errors: it cannot be read, or is another.
pub fn expert_use(file: &Path) -> Result<ExpertUse, CliError> {
    let text = inputs::read_text(file, "a file of --expert-stats")?;
    let mut used = ExpertUse::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |why: &str| {
            CliError::bad_input(format!(
                "--expert-stats {}: line {}: {why}; wanted what `moe-run trace --routing` writes",
                file.display(),
                number + 1
            ))
        };
        let line: serde_json::Value =
            serde_json::from_str(line).map_err(|error| wrong(&error.to_string()))?;
        let Some(layer) = line.get("layer").and_then(serde_json::Value::as_u64) else { continue };
        let ids =
            line.get("experts").and_then(serde_json::Value::as_array).ok_or_else(|| wrong("no experts"))?;
        for id in ids {
            let id = id
                .as_u64()
                .filter(|id| *id < MAX_EXPERTS)
                .ok_or_else(|| wrong("an expert that is no number"))?;
            let counts = used.entry(layer as usize).or_default();
            if counts.len() <= id as usize {
                counts.resize(id as usize + 1, 0);
            }
            counts[id as usize] += 1;
        }
    }
    if used.is_empty() {
        return Err(CliError::bad_input(format!(
            "--expert-stats {}: no layer's experts; wanted what `moe-run trace --routing` writes",
            file.display()
        )));
    }
    Ok(used)
}

/// A placement from a file.
fn given(file: &Path) -> Result<Placement, CliError> {
    let text = inputs::read_text(file, "a placement of --place")?;
    Placement::from_json(&file.display().to_string(), &text).map_err(CliError::bad_input)
}

/// Writes a placement.
fn save(file: &Path, placement: &Placement) -> Result<(), BackendError> {
    let failed = |error: std::io::Error| {
        BackendError::Observer(format!("--save-placement {}: {error}", file.display()).into())
    };
    let text = serde_json::to_string_pretty(placement).map_err(|error| failed(error.into()))?;
    let target = partial_file::PartialFile::create(file).map_err(failed)?;
    writeln!(target.file().map_err(failed)?, "{text}").map_err(failed)?;
    target.finish().map_err(failed)
}

/// `cuda:0=8GiB`.
fn device_memory(argument: &str) -> Result<(String, u64), String> {
    let (device, size) = argument.rsplit_once('=').ok_or("wanted DEVICE=SIZE, such as cuda:0=8GiB")?;
    Ok((device.to_owned(), size_bytes(size)?))
}

/// A size: bytes, or a number with a unit of 1000 (kB, MB, GB, TB) or 1024 (KiB, MiB, GiB, TiB).
///
/// Errors: what is wanted.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, f64)] = &[
        ("KiB", 1024.0),
        ("MiB", 1048576.0),
        ("GiB", 1073741824.0),
        ("TiB", 1099511627776.0),
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("B", 1.0),
        ("", 1.0),
    ];
    let wanted =
        || format!("'{text}' is no size; wanted bytes, or a number with a unit such as 8GiB or 500MB");
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = UNITS.iter().find(|(name, _)| *name == &text[number.len()..]).ok_or_else(wanted)?.1;
    let value: f64 = number.trim().parse().map_err(|_| wanted())?;
    let bytes = value * unit;
    if bytes.is_finite() && bytes >= 0.0 && bytes < u64::MAX as f64 {
        Ok(bytes as u64)
    } else {
        Err(wanted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size_bytes("0"), Ok(0));
        assert_eq!(size_bytes("12345"), Ok(12345));
        assert_eq!(size_bytes("8GiB"), Ok(8 << 30));
        assert_eq!(size_bytes("1.5 MB"), Ok(1_500_000));
        for wrong in ["", "GiB", "8 gibs", "-1", "1e400", "NaN", "8Gib"] {
            assert!(size_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(device_memory("cuda:0=8GiB"), Ok(("cuda:0".to_owned(), 8 << 30)));
        assert!(device_memory("8GiB").is_err());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let none = PlaceArgs::default();
        assert!(none.request("auto", None).unwrap().is_none());
        assert!(none.request("cpu", Some("0")).unwrap().is_none());
        let two = none.request("auto", Some("cpu,reference")).unwrap().unwrap();
        assert_eq!(two.devices, ["cpu", "reference"]);
        let refused =
            |args: &PlaceArgs, backend, device| args.request(backend, device).unwrap_err().to_string();
        assert!(refused(&none, "auto", Some("0")).contains("devices are numbered by backend"));
        let place = |place: &str| PlaceArgs { place: Some(place.to_owned()), ..PlaceArgs::default() };
        assert!(refused(&place("layers"), "auto", None).contains("no devices are named"));
        assert!(refused(&place("layers"), "cpu", Some("0")).contains("leave --backend out"));
        assert!(refused(&place("halves"), "auto", Some("cpu,cpu")).contains("wanted auto, layers"));
        assert!(refused(&place("no/such.json"), "auto", Some("cpu")).contains("no/such.json"));
        let memory = PlaceArgs { device_memory: vec![("cuda:1".to_owned(), 1)], ..PlaceArgs::default() };
        assert!(refused(&memory, "auto", Some("cpu,reference")).contains("not among the devices"));
    }
}
