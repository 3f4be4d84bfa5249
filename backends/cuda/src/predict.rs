//! How long a decode step may take on a chip that is not at hand, launch by launch, from the plan and from the kernels' machine code.
//!
//! Input: a plan, and the counts of kernels/sass-table.txt. Output: for each launch the largest of three times. *Issue*: the
//! instructions of the busiest multiprocessor, one a scheduler and cycle, those of the half-rate pipe one every two cycles.
//! *Bytes*: weights and cache at the memory's full rate. *Latency*: what hangs together and cannot overlap. Deliberately absent:
//! caches, clocks that fall under load, prompts; launches whose kernel or format the table does not count have no issue time. No
//! number here has been measured on a GPU.

use super::driver::{DriverInfo, KernelLaunch, occupancy};
use super::dry::{self, Terms};
use super::groups;
use moe_run_graph::cost::launch_cost;
use moe_run_graph::ir::{Graph, Node, OpKind, StepSizes};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::CompileOptions;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Instructions of kernels' loops (scripts/sass-counts.py).
const TABLE: &str = include_str!("../../../kernels/sass-table.txt");

/// A chip as its maker describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chip {
    /// As the command line names it.
    pub key: &'static str,
    /// Its full name.
    pub name: &'static str,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Cycles a second: the boost clock, and of data centre chips what they hold under load.
    pub clock_hz: f64,
    /// Of its memory.
    pub bytes_per_s: f64,
}

/// The chips that steps can be predicted for, from NVIDIA's data sheets.
pub const CHIPS: [Chip; 5] = [
    chip("h200", "H200 SXM", (9, 0), 132, 1.83, 4800.0),
    chip("h100", "H100 SXM", (9, 0), 132, 1.83, 3350.0),
    chip("5090", "GeForce RTX 5090", (12, 0), 170, 2.41, 1792.0),
    chip("4090", "GeForce RTX 4090", (8, 9), 128, 2.52, 1008.0),
    chip("3090", "GeForce RTX 3090", (8, 6), 82, 1.70, 936.0),
];

const fn chip(
    key: &'static str,
    name: &'static str,
    capability: (i32, i32),
    multiprocessors: u32,
    ghz: f64,
    gb_per_s: f64,
) -> Chip {
    Chip { key, name, capability, multiprocessors, clock_hz: ghz * 1e9, bytes_per_s: gb_per_s * 1e9 }
}

/// Schedulers of a multiprocessor.
const SCHEDULERS: f64 = 4.0;
/// A launch of a recorded step begins so long behind the one in front, and fills the chip. Estimate, as are the four below.
const RAMP_S: f64 = 0.7e-6;
/// A read that misses the caches, under load.
const READ_S: f64 = 0.8e-6;
/// Reads of a launch that wait for one another: the row, then weights.
const READS: f64 = 2.0;
/// Cycles of `attention_step` from the first read to the last write, of which little overlaps (counted for 512 positions).
const ATTENTION_CYCLES: f64 = 8600.0;
/// Cycles that a warp spends on a row beside its products: the sum over the lanes, addresses, the result.
const ROW_CYCLES: f64 = 60.0;
/// Between two steps: the choice of a token, two small copies, the next step's launch.
const STEP_S: f64 = 15e-6;

/// What a launch may take.
#[derive(Debug, Clone, PartialEq)]
pub struct LaunchTime {
    /// The pattern's name, or the op's stem.
    pub pattern: &'static str,
    /// The kernel that takes the most blocks.
    pub kernel: &'static str,
    /// Its blocks.
    pub blocks: u32,
    /// Times that the chip must be filled to run them all.
    pub waves: f64,
    /// Weights and cache.
    pub bytes: u64,
    /// Seconds of instructions; `None` where they are not counted.
    pub issue_s: Option<f64>,
    /// Seconds of memory.
    pub bytes_s: f64,
    /// Seconds of what cannot overlap.
    pub latency_s: f64,
}

impl LaunchTime {
    /// The largest of the three, and the ramp.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        RAMP_S + self.issue_s.unwrap_or(0.0).max(self.bytes_s).max(self.latency_s)
    }
}

/// Seconds of a step: its launches, and what is between two steps.
#[must_use]
pub fn step_seconds(launches: &[LaunchTime]) -> f64 {
    launches.iter().map(LaunchTime::seconds).sum::<f64>() + STEP_S
}

/// What the launches of a decode step take on a chip.
///
/// # Errors
/// What emitting the plan's launches reports.
pub fn predict(
    plan: &Plan,
    options: &CompileOptions,
    chip: &Chip,
    sizes: StepSizes,
) -> Result<Vec<LaunchTime>, BackendError> {
    let info = DriverInfo {
        name: chip.name.into(),
        details: Vec::new(),
        capability: chip.capability,
        memory_bytes: u64::MAX,
        multiprocessors: chip.multiprocessors,
        shared_bytes: 48 << 10,
        software: false,
        matrix_units: true,
        unsupported: None,
    };
    let terms = Terms { profile: super::profile(options), kv_type: options.kv_type };
    let made = dry::launches(plan, terms, &info, sizes)?;
    let production = made.iter().filter(|(launch, _)| !launch.recomputed);
    let timed = production.filter_map(|(launch, kernels)| {
        let widest = kernels.iter().max_by_key(|k| blocks(k))?;
        let row_bytes = |elems| options.kv_type.row_bytes(elems);
        let bytes = launch_cost(plan, launch, sizes, &row_bytes).streamed_bytes();
        let at_once =
            occupancy::resident_blocks(widest.kernel, chip.capability, widest.threads, widest.shared_bytes);
        let at_once = at_once.unwrap_or(1).max(1) * chip.multiprocessors;
        let latency_s = match widest.kernel {
            "attention_step" => ATTENTION_CYCLES / chip.clock_hz,
            _ => READS * READ_S,
        };
        Some(LaunchTime {
            pattern: launch.pattern,
            kernel: widest.kernel,
            blocks: blocks(widest),
            waves: f64::from(blocks(widest)) / f64::from(at_once),
            bytes,
            issue_s: issue_cycles(plan, launch, widest, chip).map(|cycles| cycles / chip.clock_hz),
            bytes_s: bytes as f64 / chip.bytes_per_s,
            latency_s,
        })
    });
    Ok(timed.collect())
}

fn blocks(kernel: &KernelLaunch) -> u32 {
    kernel.grid.iter().product()
}

/// Cycles of the busiest multiprocessor's schedulers.
fn issue_cycles(plan: &Plan, launch: &Launch, kernel: &KernelLaunch, chip: &Chip) -> Option<f64> {
    let graph = &plan.graph;
    let nodes: Vec<&Node> = plan.launch_nodes(launch).collect();
    let products: Vec<Product> = nodes.iter().filter_map(|node| Product::of(graph, node)).collect();
    let counted = |what: &str| count(kernel.kernel, what, chip);
    // Blocks of as many rows as they have warps, those of the busiest multiprocessor; pairs share a warp.
    let warps = f64::from(kernel.threads.div_ceil(32));
    let pairs = matches!(kernel.kernel, "route_gate_up" | "gate_up" | "router_gate_up");
    let (mut rows, mut cycles) = (0.0, 0.0);
    for product in &products {
        // Products of floats are few, and bound by their bytes.
        let Some(name) = counted_format(product.format) else { continue };
        let together = if pairs || kernel.kernel == "down_combine" && product.pairs > 1 { 2.0 } else { 1.0 };
        let each = counted(&format!("{name}.x{together}")).map(|cycles| cycles / together);
        let each = each.or_else(|| counted(&format!("{name}.x1")))?;
        let lanes = if product.pairs > 1 && kernel.kernel == "down_combine" {
            groups::down_lanes(product.inner, product.pairs)
        } else {
            32
        };
        // Two chunks a lane are an iteration; a lane group that is a part of a warp shares it with others.
        let iterations = (product.inner / 32).div_ceil(lanes) as f64 / 2.0;
        let count = (product.rows * product.pairs) as f64;
        let row_warps = count * lanes as f64 / 32.0;
        cycles += row_warps * (iterations * each + ROW_CYCLES / together);
        rows += if pairs { count / 2.0 } else { count / product.pairs as f64 };
    }
    if products.is_empty() || cycles == 0.0 {
        return None;
    }
    let multiprocessors = f64::from(chip.multiprocessors);
    let row_blocks = (rows / warps).ceil();
    let busiest = (row_blocks / multiprocessors).ceil() * multiprocessors / row_blocks;
    let of_rows = cycles * busiest / multiprocessors;
    let block_count = (f64::from(blocks(kernel)) / multiprocessors).ceil();
    let of_blocks = block_count * preparation(kernel, &products, nodes.as_slice(), chip);
    Some((of_rows + of_blocks) / SCHEDULERS)
}

/// Cycles of a block's warps before its first row: activations in 8 bits, a norm, the choice of experts.
fn preparation(kernel: &KernelLaunch, products: &[Product], nodes: &[&Node], chip: &Chip) -> f64 {
    let counted = |what: &str| count(kernel.kernel, what, chip).unwrap_or(0.0);
    let warps = f64::from(kernel.threads.div_ceil(32));
    let threads = f64::from(kernel.threads);
    let elems = products.iter().map(Product::input_elems).max().unwrap_or(0) as f64;
    match kernel.kernel {
        // One warp chooses while the others stage.
        "route_gate_up" => {
            let per_tok = products.iter().map(|p| p.pairs).max().unwrap_or(0) as f64;
            let rounds = (elems / 4.0 / (threads - 32.0)).ceil();
            (warps - 1.0) * rounds * counted("stage") + per_tok * counted("choose")
        }
        _ if nodes.iter().any(|n| n.op.kind() == OpKind::RmsNorm) => {
            warps * (elems / 4.0 / threads).ceil() * counted("norm")
        }
        _ => warps * (elems / 4.0 / threads).ceil() * counted("stage"),
    }
}

/// A product of a launch.
struct Product {
    format: Format,
    rows: usize,
    inner: usize,
    /// Experts of the token; 1 for a plain matrix.
    pairs: usize,
    /// Each pair has a row of activations of its own.
    own_rows: bool,
}

impl Product {
    fn of(graph: &Graph, node: &Node) -> Option<Product> {
        let slice = node.op.weight_slice()?;
        let weight = graph.weight(slice.tensor);
        let one = StepSizes { tokens: 1, logits_rows: 1, cached: 1 };
        let elems = |i: usize| graph.value(node.inputs[i]).shape.elems(one);
        let inner = weight.shape.last().copied()?;
        let pairs = match node.op.kind() {
            OpKind::MatMul => 1,
            OpKind::ExpertMatMul => elems(1),
            _ => return None,
        };
        let own_rows = pairs > 1 && elems(0) > inner;
        Some(Product { format: weight.format, rows: slice.rows.len(), inner, pairs, own_rows })
    }

    /// Elements that a block prepares for it.
    fn input_elems(&self) -> usize {
        if self.own_rows { self.inner * self.pairs } else { self.inner }
    }
}

/// What the table calls a format whose loop it counts.
fn counted_format(format: Format) -> Option<&'static str> {
    match format {
        Format::Q4K => Some("Q4_K"),
        Format::Q5K => Some("Q5_K"),
        Format::Q6K => Some("Q6_K"),
        Format::Q8_0 => Some("Q8_0"),
        Format::Mxfp4 => Some("MXFP4"),
        _ => None,
    }
}

/// Cycles of a scheduler for what the table counts of a kernel, on the newest of its chips that is not newer than this one.
fn count(kernel: &str, what: &str, chip: &Chip) -> Option<f64> {
    type Rows = (Vec<i32>, HashMap<(&'static str, &'static str), Vec<Option<(f64, f64)>>>);
    static ROWS: OnceLock<Rows> = OnceLock::new();
    let read = || -> Rows {
        let mut lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        let chips = lines.next().unwrap_or_default().split_whitespace().skip(2);
        let chips = chips.filter_map(|name| name.strip_prefix("sm_")?.parse().ok()).collect();
        let numbers = |cell: &str| {
            let mut numbers = cell.split('/').map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        };
        let row = |line: &'static str| {
            let mut cells = line.split_whitespace();
            Some(((cells.next()?, cells.next()?), cells.map(numbers).collect()))
        };
        (chips, lines.filter_map(row).collect())
    };
    let (chips, rows) = ROWS.get_or_init(read);
    let (major, minor) = chip.capability;
    let column = chips.iter().rposition(|c| *c <= 10 * major + minor)?;
    let (all, half_rate) = rows.get(&(kernel, what))?.get(column).copied().flatten()?;
    // From compute capability 12.0 on integers go at the rate of floats.
    Some(if major >= 12 { all } else { all.max(2.0 * half_rate) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What decode on an H100 rests on: cycles of the loop over two chunks a lane and row.
    #[test]
    fn the_table_holds_the_counts_that_decode_rests_on() {
        let h100 = CHIPS[1];
        for (kernel, what, most) in [
            ("norm_matmul", "Q4_K.x1", 150.0),
            ("matmul_residual", "Q4_K.x1", 145.0),
            ("route_gate_up", "Q4_K.x1", 125.0),
            ("route_gate_up", "Q4_K.x2", 240.0),
        ] {
            let found = count(kernel, what, &h100).unwrap_or(f64::INFINITY);
            assert!(found <= most, "{kernel} {what}: {found} cycles");
        }
        for chip in &CHIPS {
            assert!(count("norm_matmul", "norm", chip).is_some(), "{chip:?}");
            assert!(count("route_gate_up", "choose", chip).is_some(), "{chip:?}");
            assert!(count("down_combine", "Q6_K.x2", chip).is_some(), "{chip:?}");
        }
        assert_eq!(count("norm_matmul", "Q9_K.x1", &h100), None);
    }

    #[test]
    fn the_counts_are_of_these_sources() {
        let sources = TABLE.lines().find_map(|line| line.strip_prefix("# sources "));
        assert_eq!(sources, crate::driver::embedded_sources(), "run scripts/sass-counts.py --update");
    }
}
