//! `moe-run place`: which device would hold what of a model, what that would give, and what would change it. No device is opened,
//! and no weight is read: a file that `synth --dry-run` wrote will do.

use std::{fmt::Write as _, num::NonZeroUsize};

use moe_run_backends::{
    CompileOptions, DeviceKind, KvType, bandwidth,
    executable::{MICRO_BATCH, PoolSize},
    placed::PlaceRequest,
    placed::Wanted,
    placement, registry,
};
use moe_run_graph::{
    Model,
    ir::{Lifetime, StateDecl},
    passes::{cuts, expert_parts},
    place::{Budget, Forecast, PlaceError, Placement, Speed, StateBytes, forecast},
};
use serde::Serialize;

use crate::{
    CliError, ExitCode,
    common::{self, DEFAULT_CTX_SIZE, ModelArgs},
    engine::human_bytes,
    output,
    place_args::{PlaceArgs, size_bytes},
};

/// Cards and accelerators by the names that people call them: bytes of memory, and of it a second, as their makers give them.
const NAMED: &[(&str, u64, f64)] = &[
    ("3060", 12 << 30, 360e9),
    ("3090", 24 << 30, 936e9),
    ("4060ti", 16 << 30, 288e9),
    ("4070", 12 << 30, 504e9),
    ("4080", 16 << 30, 717e9),
    ("4090", 24 << 30, 1008e9),
    ("5070ti", 16 << 30, 896e9),
    ("5080", 16 << 30, 960e9),
    ("5090", 32 << 30, 1792e9),
    ("a100", 80_000_000_000, 2039e9),
    ("a6000", 48 << 30, 768e9),
    ("h100", 80_000_000_000, 3350e9),
    ("h200", 141_000_000_000, 4800e9),
    ("l40s", 48 << 30, 864e9),
];
/// Host memory that a machine is named with, where no speed is: two channels of DDR5-5600 give 89.6 GB/s at most, a read loop 70.
const HOST_BYTES_PER_SECOND: f64 = 70e9;
/// PCIe 4.0 with 16 lanes, of whose 32 GB/s copies get 25.
const LINK_BYTES_PER_SECOND: f64 = 25e9;
/// The version of the JSON.
const SCHEMA_VERSION: u32 = 1;

/// Arguments of `place`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// A machine that need not be here: cards and host memory, such as 4090+64GB, 2x3090+128GB or 8xH200; GB may be followed by
    /// @ and the memory's GB/s
    #[arg(long = "for", value_name = "MACHINE", conflicts_with = "device")]
    pub machine: Option<String>,

    /// Devices of this machine, such as cuda:0,cpu [default: its GPUs, then the CPU]
    #[arg(long, value_name = "DEVICE,…")]
    pub device: Option<String>,

    /// What a device reads a second, such as cuda:0=1008; a CPU is measured where it is not named
    #[arg(long, value_name = "DEVICE=GB/S", value_parser = device_speed)]
    pub bandwidth: Vec<(String, f64)>,

    /// How they share it
    #[command(flatten)]
    pub place: PlaceArgs,

    /// Tokens that the context holds [default: what the model was trained for, 4096 at most]
    #[arg(short, long, value_name = "TOKENS", value_parser = common::whole_number::<NonZeroUsize>)]
    pub ctx_size: Option<NonZeroUsize>,

    /// How the KV cache is stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = common::kv_types())]
    pub kv_type: KvType,

    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

fn device_speed(argument: &str) -> Result<(String, f64), String> {
    let (device, speed) = argument.rsplit_once('=').ok_or("wanted DEVICE=GB/S, such as cuda:0=1008")?;
    let speed: f64 = speed.parse().map_err(|_| format!("'{speed}' is no number of GB/s"))?;
    if speed.is_finite() && speed > 0.0 {
        Ok((device.to_owned(), speed * 1e9))
    } else {
        Err("wanted more than 0".into())
    }
}

/// A device that takes part.
#[derive(Clone, Debug)]
struct Device {
    budget: Budget,
    speed: Speed,
}

/// What would be otherwise.
#[derive(Debug, Serialize)]
struct Change {
    what: String,
    /// `None` where the devices would not hold the model.
    seconds: Option<f64>,
    expert_share: Vec<f64>,
}

/// The JSON.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: u32,
    model: String,
    ctx_size: usize,
    kv_type: KvType,
    budgets: Vec<Option<u64>>,
    speeds: Vec<Speed>,
    placement: Placement,
    how: &'static str,
    forecast: Forecast,
    tokens_per_second: f64,
    changes: Vec<Change>,
}

/// Places and prints.
///
/// Errors: arguments; a model that cannot be read; devices that cannot hold it, with the least that would.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.machine.is_some() && args.place.save_placement.is_some() {
        return Err(CliError::bad_input(
            "--for: a machine that is not here has no devices for --save-placement to name; give --device",
        ));
    }
    let machine = args.machine.as_deref().map(machine).transpose()?;
    let list = match (&machine, &args.device) {
        (None, None) => Some(here()),
        (_, device) => device.clone(),
    };
    let given = PlaceArgs { device_memory: Vec::new(), ..args.place.clone() };
    // A named machine's devices are no backend's.
    let request = match &machine {
        Some(_) => given.request("auto", Some("cpu"))?,
        None => args.place.request("auto", list.as_deref())?,
    };
    let Some(request) = request else { return Err(CliError::bad_input(PlaceError::NoDevice)) };
    let mut devices = match machine {
        Some(devices) => devices,
        None => devices_here(&request, &args)?,
    };
    for (name, bytes) in args.place.device_memory.iter().filter(|_| args.machine.is_some()) {
        let mut named = devices.iter_mut().filter(|device| device.budget.device == *name).peekable();
        if named.peek().is_none() {
            return Err(CliError::bad_input(format!(
                "--device-memory {name}: not among the devices of --for"
            )));
        }
        named.for_each(|device| device.budget.bytes = Some(*bytes));
    }
    for (name, speed) in &args.bandwidth {
        let mut named = devices.iter_mut().filter(|device| device.budget.device == *name).peekable();
        if named.peek().is_none() {
            return Err(CliError::bad_input(format!("--bandwidth {name}: not among the devices")));
        }
        named.for_each(|device| device.speed.bytes_per_second = *speed);
    }
    if let Some(device) = devices.iter().find(|device| device.speed.bytes_per_second.is_nan()) {
        let name = &device.budget.device;
        return Err(CliError::bad_input(format!(
            "how fast {name} reads is not known without opening it; give --bandwidth {name}=GB/S"
        )));
    }
    let model = args.model.open()?;
    let trained_for = model.config.max_position_embeddings;
    let ctx_size = args.ctx_size.map_or(DEFAULT_CTX_SIZE.min(trained_for), NonZeroUsize::get);
    let (placement, how, forecast) = place(&model, &request, &devices, ctx_size, args.kv_type)?;
    if let Some(told) = &request.placed
        && args.machine.is_none()
    {
        told(&placement, &[])?;
    }
    let change = |what: String, ctx_size: usize, kv_type: KvType| {
        let placed = place(&model, &request, &devices, ctx_size, kv_type).ok();
        let expert_share = placed.as_ref().map_or_else(Vec::new, |(_, _, f)| f.expert_share.clone());
        Change { what, seconds: placed.map(|(_, _, forecast)| forecast.seconds), expert_share }
    };
    let mut changes = vec![
        change(format!("--ctx-size {}", (ctx_size / 2).max(1)), (ctx_size / 2).max(1), args.kv_type),
        change(format!("--ctx-size {}", ctx_size * 2), ctx_size * 2, args.kv_type),
    ];
    if args.kv_type != KvType::Q8_0 {
        changes.push(change("--kv-type q8_0".to_owned(), ctx_size, KvType::Q8_0));
    }
    let report = Report {
        schema_version: SCHEMA_VERSION,
        model: model.config.architecture.clone(),
        ctx_size,
        kv_type: args.kv_type,
        budgets: devices.iter().map(|device| device.budget.bytes).collect(),
        speeds: devices.iter().map(|device| device.speed.clone()).collect(),
        tokens_per_second: 1.0 / forecast.seconds,
        placement,
        how,
        forecast,
        changes,
    };
    if args.json {
        output::json(&report)?
    } else {
        output::text(&text(&report))?
    }
    Ok(ExitCode::Ok)
}

/// Places a model on devices, with what that gives.
fn place(
    model: &Model,
    request: &PlaceRequest,
    devices: &[Device],
    ctx_size: usize,
    kv_type: KvType,
) -> Result<(Placement, &'static str, Forecast), CliError> {
    let graph = &model.graph;
    let (cuts, parts) = (cuts(graph), expert_parts(graph));
    let options = CompileOptions { ctx_size, kv_type, ..CompileOptions::default() };
    let sizes = placement::sizes(graph, registry::by_name("cpu")?.as_ref(), &options)?;
    let budgets: Vec<Budget> = devices.iter().map(|device| device.budget.clone()).collect();
    let (placement, how) = match &request.wanted {
        Wanted::Given(given) => {
            if given.devices.len() != devices.len() {
                let (found, wanted) = (devices.len(), given.devices.len());
                return Err(CliError::bad_input(PlaceError::Devices { found, wanted }));
            }
            (given.clone(), "as the given placement says")
        }
        wanted => {
            let chosen =
                placement::choose(graph, &parts, &cuts, &sizes, &budgets, wanted, request.used.as_ref());
            chosen.map_err(moe_run_backends::BackendError::from)?
        }
    };
    placement.check(&cuts, &parts).map_err(CliError::bad_input)?;
    let row = |state: &StateDecl| kv_type.row_bytes(state.row_elems()) as u64;
    let pool = PoolSize::of_one(ctx_size, MICRO_BATCH);
    let held = |state: &StateDecl| pool.state_bytes(state, kv_type);
    // Of a context that is half full.
    let read = |state: &StateDecl| match state.lifetime {
        Lifetime::PerToken { window } => {
            row(state).saturating_mul(window.unwrap_or(usize::MAX).min(ctx_size / 2) as u64)
        }
        Lifetime::PerSequence => 8 * state.row_elems() as u64,
    };
    let speeds: Vec<Speed> = devices.iter().map(|device| device.speed.clone()).collect();
    let states = StateBytes { held: &held, read: &read };
    let of = forecast(graph, &parts, &placement, &speeds, &states, sizes.working, request.used.as_ref());
    Ok((placement, how, of))
}

/// `2x3090+128GB@90`.
fn machine(text: &str) -> Result<Vec<Device>, CliError> {
    let wrong = |part: &str| {
        let names: Vec<&str> = NAMED.iter().map(|(name, _, _)| *name).collect();
        CliError::bad_input(format!(
            "--for {text}: '{part}' is neither a card that is known here ({}) nor a size of host memory; wanted such as \
             4090+64GB or 8xH200",
            names.join(", ")
        ))
    };
    let mut devices: Vec<Device> = Vec::new();
    for part in text.split('+').map(str::trim) {
        let (count, name) = match part.split_once(['x', 'X']) {
            Some((count, name)) => (count.parse::<usize>().map_err(|_| wrong(part))?, name),
            None => (1, part),
        };
        if let Some((name, bytes, speed)) =
            NAMED.iter().find(|(known, _, _)| known.eq_ignore_ascii_case(name))
        {
            if count == 0 || count > 64 {
                return Err(wrong(part));
            }
            let first = devices.iter().filter(|device| device.budget.backend == *name).count();
            devices.extend((first..first + count).map(|i| Device {
                budget: Budget {
                    device: format!("{name}:{i}"),
                    backend: (*name).to_owned(),
                    bytes: Some(bytes - bytes / placement::RESERVE),
                },
                speed: Speed { bytes_per_second: *speed, link_bytes_per_second: LINK_BYTES_PER_SECOND },
            }));
            continue;
        }
        let (size, speed) = match part.split_once('@') {
            Some((size, speed)) => (size, speed.parse::<f64>().map_err(|_| wrong(part))? * 1e9),
            None => (part, HOST_BYTES_PER_SECOND),
        };
        let bytes = size_bytes(size).map_err(|_| wrong(part))?;
        if size.chars().all(|c| c.is_ascii_digit()) || !(speed.is_finite() && speed > 0.0) {
            return Err(wrong(part));
        }
        devices.push(Device {
            budget: Budget {
                device: "host".to_owned(),
                backend: "host".to_owned(),
                bytes: Some(bytes - bytes / placement::RESERVE),
            },
            speed: Speed { bytes_per_second: speed, link_bytes_per_second: f64::MAX },
        });
    }
    Ok(devices)
}

/// The GPUs of this machine, then its CPU.
fn here() -> String {
    let mut list = Vec::new();
    for backend in registry::all().iter().filter(|backend| backend.name() != "cpu") {
        let devices = backend.devices().unwrap_or_default();
        let is_gpu = |kind| matches!(kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu);
        let gpus = devices.iter().filter(|device| is_gpu(device.kind));
        let found: Vec<String> = gpus.map(|device| format!("{}:{}", backend.name(), device.index)).collect();
        // The same card is not to be there by two interfaces.
        if list.is_empty() {
            list.extend(found);
        }
    }
    list.push("cpu".to_owned());
    list.join(",")
}

/// The devices that are asked for; a CPU is measured unless its speed is named.
fn devices_here(request: &PlaceRequest, args: &Args) -> Result<Vec<Device>, CliError> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let named = |device: &str| args.bandwidth.iter().any(|(name, _)| name == device);
    let mut measured = None;
    let budgets = placement::budgets(request)?;
    let device = |budget: Budget| {
        let is_host = matches!(budget.backend.as_str(), "cpu" | "reference");
        let speed = match is_host && !named(&budget.device) {
            true => *measured.get_or_insert_with(|| bandwidth::read_bytes_per_second(threads)),
            false => f64::NAN,
        };
        let link = if is_host { f64::MAX } else { LINK_BYTES_PER_SECOND };
        Device { budget, speed: Speed { bytes_per_second: speed, link_bytes_per_second: link } }
    };
    Ok(budgets.into_iter().map(device).collect())
}

/// The report for people.
fn text(r: &Report) -> String {
    let mut t = String::new();
    let names = &r.placement.devices;
    let _ = writeln!(t, "{}: context of {} tokens, KV cache {}; {}", r.model, r.ctx_size, r.kv_type, r.how);
    let _ =
        writeln!(t, "\n{:>14} {:>11} {:>11} {:>10} {:>9}", "device", "may take", "holds", "GB/s", "experts");
    for (i, name) in names.iter().enumerate() {
        let _ = writeln!(
            t,
            "{name:>14} {:>11} {:>11} {:>10.0} {:>7.1} %",
            r.budgets[i].map_or_else(|| "all".to_owned(), human_bytes),
            human_bytes(r.forecast.bytes[i]),
            r.speeds[i].bytes_per_second / 1e9,
            r.forecast.expert_share[i] * 100.0
        );
    }
    let _ = writeln!(
        t,
        "\nlayer: ms a token, what devices hold, and the share of its experts' reads expected there"
    );
    let mut rows: Vec<(String, String)> = Vec::new();
    for layer in &r.forecast.layers {
        let holds = layer.bytes.iter().enumerate().filter(|(_, bytes)| **bytes > 0).map(|(device, bytes)| {
            let share = layer.expert_share.get(device).filter(|share| **share > 0.0);
            let share = share.map_or_else(String::new, |share| format!(" ({:.1} %)", share * 100.0));
            format!("{} {}{share}", names[device], human_bytes(*bytes))
        });
        let row = format!("{:.3}  {}", layer.seconds * 1e3, holds.collect::<Vec<_>>().join(", "));
        let name = layer.layer.map_or_else(|| "head".to_owned(), |layer| layer.to_string());
        rows.push((name, row));
    }
    // Layers that are alike are one line.
    for run in rows.chunk_by(|a, b| a.1 == b.1) {
        let (first, last) = (&run[0].0, &run[run.len() - 1].0);
        let name = if run.len() == 1 { first.clone() } else { format!("{first}-{last}") };
        let _ = writeln!(t, "{name:>8}  {}", run[0].1);
    }
    let _ = writeln!(
        t,
        "\nat least {:.2} ms a token, {:.1} tokens/s at most: what is read at these bandwidths, half of the context held",
        r.forecast.seconds * 1e3,
        r.tokens_per_second
    );
    for change in &r.changes {
        match change.seconds {
            Some(seconds) => {
                let first = change.expert_share.first().copied().unwrap_or(0.0) * 100.0;
                let _ = writeln!(
                    t,
                    "with {}: {:.1} tokens/s at most, {first:.1} % of the experts' reads on {}",
                    change.what,
                    1.0 / seconds,
                    names[0]
                );
            }
            None => {
                let _ = writeln!(t, "with {}: the devices would not hold it", change.what);
            }
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_names() {
        let names = |text: &str| -> Vec<String> {
            machine(text).unwrap().into_iter().map(|device| device.budget.device).collect()
        };
        assert_eq!(names("4090+64GB"), ["4090:0", "host"]);
        assert_eq!(names("2x3090+128GB@90"), ["3090:0", "3090:1", "host"]);
        assert_eq!(names("8xH200").len(), 8);
        assert_eq!(machine("64GB@90").unwrap()[0].speed.bytes_per_second, 90e9);
        assert_eq!(machine("4090").unwrap()[0].budget.bytes, Some((24 << 30) - (24 << 30) / 10));
        for wrong in ["", "9999", "0x4090", "x4090", "4090+", "4090+64", "4090+64GB@0", "4090+lots"] {
            assert!(machine(wrong).is_err(), "{wrong}");
        }
    }
}
