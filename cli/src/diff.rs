//! `moe-run diff`: two tensor files, or two sets of saved stages, compared pair by pair.

use std::{fmt::Write as _, path::PathBuf};

use moe_run_graph::shown::{shown, shown_list};
use moe_run_inspect::taps::{
    compare::{Comparison, Difference, compare},
    flips::{Flip, Logits, align, flips},
    number::Num,
    tensor_file::TensorRef,
    tensor_set::TensorSet,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{CliError, ExitCode, common, inputs, output};

/// The version of the JSON's layout.
const SCHEMA_VERSION: u32 = 1;
/// Stages whose second axis is the chosen experts.
const PER_EXPERT: [&str; 6] = ["moe_router", "ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out"];

/// Arguments of `diff`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Tensor file (APRT, npy), safetensors file, or directory of saved tensors
    pub a: PathBuf,

    /// The same of the run that A is compared with
    pub b: PathBuf,

    /// Largest relative L2 distance that is within; without it, equal values are wanted
    #[arg(long, value_name = "REL", default_value_t = 0.0, allow_negative_numbers = true)]
    pub tolerance: f64,

    /// Differences that are listed for each pair, largest first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub limit: usize,

    /// Judge by the pairs alone where one side lacks tensors of the other; without it, a lack is beyond
    #[arg(long)]
    pub allow_missing: bool,

    /// Print one JSON object instead of text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Serialize)]
struct Pair {
    name: String,
    shape: Vec<usize>,
    within: bool,
    #[serde(flatten)]
    comparison: Comparison,
    /// Where the largest difference is.
    at: Option<Value>,
    largest_at: Vec<Value>,
    /// Of moe_topk_ids: positions whose experts differ.
    flips: Vec<Flip>,
    /// Positions whose expert sets differ by a near-tie, and which are therefore not judged in the stages behind.
    rows_excluded: usize,
}

/// Compares.
///
/// Errors: input that cannot be read, or that does not match.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.tolerance.is_nan() || args.tolerance < 0.0 {
        return Err(CliError::bad_input(format!("--tolerance: found {}, wanted 0 or more", args.tolerance)));
    }
    let (a, b) = (TensorSet::open(&args.a)?, TensorSet::open(&args.b)?);
    inputs::add_tensors(&a, "a file of A")?;
    inputs::add_tensors(&b, "a file of B")?;
    let only = |x: &TensorSet, y: &TensorSet| -> Vec<String> {
        x.tensors.keys().filter(|n| !y.tensors.contains_key(*n)).cloned().collect()
    };
    let (only_a, only_b) = (only(&a, &b), only(&b, &a));
    let mut pairs = Vec::new();
    for name in a.tensors.keys().filter(|n| b.tensors.contains_key(*n)) {
        pairs.push(pair(name, &a, &b, &args)?);
    }
    if pairs.is_empty() {
        return Err(CliError::bad_input(format!(
            "{} and {} have no tensor of the same name; the first has {}, the second {}; a file of one tensor is compared \
             with another such file",
            args.a.display(),
            args.b.display(),
            contents(&a),
            contents(&b)
        )));
    }
    let beyond = pairs.iter().filter(|p| !p.within).count();
    let missing = if args.allow_missing { 0 } else { only_a.len() + only_b.len() };
    let verdict = match (beyond, missing) {
        (0, 0) => "within",
        (0, _) => "missing",
        _ => "beyond",
    };
    if args.json {
        output::json(&json!({
            "schema_version": SCHEMA_VERSION,
            "verdict": verdict,
            "tolerance": Num(args.tolerance),
            "pairs": pairs,
            "only_a": only_a,
            "only_b": only_b,
        }))?;
    } else {
        output::text(&text(&pairs, &only_a, &only_b, beyond, missing, args.tolerance))?;
    }
    Ok(if beyond + missing == 0 { ExitCode::Ok } else { ExitCode::Verdict })
}

/// What a set holds, for an error.
fn contents(set: &TensorSet) -> String {
    match set.tensors.iter().next() {
        None => "none".to_owned(),
        Some((name, tensor)) if name.is_empty() => {
            let file = tensor.path.file_stem().unwrap_or(tensor.path.as_os_str());
            format!("only {}", shown(file.to_string_lossy()))
        }
        Some((name, _)) if set.tensors.len() == 1 => format!("only {}", shown(name)),
        Some((name, _)) => format!("{} and {} more", shown(name), set.tensors.len() - 1),
    }
}

/// `layer-3/` of `layer-3/ffn_gate`, and `ffn_gate`.
fn split(name: &str) -> (&str, &str) {
    name.rfind('/').map_or(("", name), |at| name.split_at(at + 1))
}

/// Elements and shape.
type Tensor = (Vec<f32>, Vec<usize>);

fn read(set: &TensorSet, name: &str) -> Result<Option<Tensor>, CliError> {
    let tensor = set.tensors.get(name);
    Ok(tensor.map(|t| t.read().map(|data| (data, t.shape.clone()))).transpose()?)
}

fn pair(name: &str, a: &TensorSet, b: &TensorSet, args: &Args) -> Result<Pair, CliError> {
    let (ra, rb): (&TensorRef, &TensorRef) = (&a.tensors[name], &b.tensors[name]);
    let shapes_differ = ra.shaped && rb.shaped && ra.shape != rb.shape;
    if ra.elems() != rb.elems() || shapes_differ {
        return Err(CliError::bad_input(format!(
            "{}{} has shape {:?}, {} has {:?}; only equal shapes can be compared",
            if name.is_empty() { String::new() } else { format!("{name}: ") },
            ra.path.display(),
            ra.shape,
            rb.path.display(),
            rb.shape
        )));
    }
    let shape = if ra.shaped { ra.shape.clone() } else { rb.shape.clone() };
    let (mut x, mut y) = (ra.read()?, rb.read()?);
    let (layer, stage) = split(name);
    let per_tok = |ids: &[usize]| (ids.len() == 2).then(|| ids[1]);
    let layer_flips = |x: &[f32], y: &[f32], k: usize| -> Result<Vec<Flip>, CliError> {
        let logits = read(a, &format!("{layer}moe_logits"))?.zip(read(b, &format!("{layer}moe_logits"))?);
        let logits = logits.as_ref().filter(|(p, q)| p.1 == q.1 && p.1.len() == 2);
        let logits = logits.map(|(p, q)| Logits { a: &p.0, b: &q.0, num_experts: p.1[1] });
        Ok(flips(x, y, k, logits, 0.0))
    };
    let mut found = Vec::new();
    let mut rows_excluded = 0;
    let (mut within, comparison);
    if stage == "moe_topk_ids"
        && let Some(k) = per_tok(&shape)
    {
        // Ids are names: compared as sets, and their numeric distance means nothing.
        found = layer_flips(&x, &y, k)?;
        within = found.iter().all(|f| f.near_tie);
        let flipped: Vec<usize> = found.iter().map(|f| f.row).collect();
        let mut sorted = y.clone();
        align(&mut sorted, k, &y, &x);
        comparison = compare(&x, &sorted, args.limit);
        rows_excluded = flipped.len();
    } else {
        if PER_EXPERT.contains(&stage)
            && let (Some(p), Some(q)) =
                (read(a, &format!("{layer}moe_topk_ids"))?, read(b, &format!("{layer}moe_topk_ids"))?)
            && let Some(k) = per_tok(&p.1).filter(|_| p.1 == q.1 && p.1.first() == shape.first())
        {
            align(&mut y, k, &q.0, &p.0);
            let width = x.len() / p.1[0].max(1);
            for flip in layer_flips(&p.0, &q.0, k)?.iter().filter(|f| f.near_tie) {
                // Other experts computed this row; the flip itself is reported with the ids.
                let row = flip.row * width..(flip.row + 1) * width;
                y[row.clone()].copy_from_slice(&x[row]);
                rows_excluded += 1;
            }
        }
        if matches!(stage, "attn_scores" | "attn_softmax")
            && let [_, tokens, cached] = shape[..]
        {
            let first = cached.saturating_sub(tokens);
            for (row, (p, q)) in x.chunks_exact_mut(cached).zip(y.chunks_exact_mut(cached)).enumerate() {
                let unseen = (first + row % tokens + 1).min(cached);
                p[unseen..].fill(0.0);
                q[unseen..].fill(0.0);
            }
        }
        comparison = compare(&x, &y, args.limit);
        within = comparison.within(args.tolerance);
    }
    within &= comparison.non_finite_mismatches == 0;
    let at = comparison.max.as_ref().map(|d| place(stage, &shape, d));
    let largest_at = comparison.largest.iter().map(|d| place(stage, &shape, d)).collect();
    Ok(Pair { name: name.to_owned(), shape, within, comparison, at, largest_at, flips: found, rows_excluded })
}

/// Which position, expert slot and channel an element belongs to.
fn place(stage: &str, shape: &[usize], difference: &Difference) -> Value {
    let mut rest = difference.index;
    let mut index = vec![0; shape.len()];
    for (axis, size) in shape.iter().enumerate().rev() {
        index[axis] = rest % size.max(&1);
        rest /= size.max(&1);
    }
    let names: &[&str] = match (stage, shape.len()) {
        ("attn_scores" | "attn_softmax", 3) => &["head", "position", "cached_position"],
        (_, 3) => &["position", "expert_slot", "channel"],
        (_, 2) => &["position", "channel"],
        _ => &[],
    };
    let mut place = serde_json::Map::new();
    place.insert("index".into(), difference.index.into());
    for (name, i) in names.iter().zip(&index) {
        place.insert((*name).into(), (*i).into());
    }
    place.into()
}

fn text(
    pairs: &[Pair],
    only_a: &[String],
    only_b: &[String],
    beyond: usize,
    missing: usize,
    tolerance: f64,
) -> String {
    let mut t = format!(
        "{:30} {:>9} {:>11} {:>11} {:>11} {:>10} {:>9} {:>9}  where the largest is\n",
        "tensor", "elements", "max |a-b|", "rms", "rel. L2", "cosine", "NaN/Inf a", "NaN/Inf b"
    );
    for p in pairs {
        let c = &p.comparison;
        let name = if p.name.is_empty() { "(the tensor)" } else { &p.name };
        let place = |at: &Value| -> String {
            let parts = at.as_object().into_iter().flatten().map(|(k, v)| format!("{k} {v}"));
            parts.collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(
            t,
            "{:30} {:>9} {:>11.4e} {:>11.4e} {:>11.4e} {:>10.7} {:>9} {:>9}  {}{}",
            shown(name),
            c.elems,
            c.max.map_or(0.0, |m| m.abs),
            c.rms,
            c.relative_l2,
            c.cosine,
            format!("{}/{}", c.nan_a, c.inf_a),
            format!("{}/{}", c.nan_b, c.inf_b),
            p.at.as_ref().map_or_else(|| "equal".to_owned(), place),
            if p.within { "" } else { "  BEYOND" },
        );
        for (d, at) in c.largest.iter().zip(&p.largest_at) {
            let _ = writeln!(t, "    {:>14.7e} {:>14.7e}  |a-b| {:.4e}  {}", d.a, d.b, d.abs, place(at));
        }
        for flip in &p.flips {
            let _ = writeln!(
                t,
                "    position {}: only a chose {:?}, only b {:?}; margin {:.3e}, the runs' logits differ by {:.3e}: {}",
                flip.row,
                flip.only_a,
                flip.only_b,
                flip.margin,
                flip.logit_difference,
                if flip.near_tie { "a near-tie" } else { "NOT a near-tie" },
            );
        }
    }
    for (side, names) in [("A", only_a), ("B", only_b)] {
        if !names.is_empty() {
            let _ = writeln!(t, "only in {side}: {}", shown_list(names));
        }
    }
    let _ = match beyond {
        0 => writeln!(t, "within {tolerance}: all {} pairs", pairs.len()),
        n => writeln!(t, "beyond {tolerance}: {n} of {} pairs", pairs.len()),
    };
    if missing > 0 {
        let _ = writeln!(t, "missing on one side: {missing}; --allow-missing judges the pairs alone");
    }
    t
}
