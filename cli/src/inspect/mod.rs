//! `moe-run inspect`: what a GGUF file holds: metadata, tensors, bytes per format, memory for a context, damage.
//!
//! The file need not be a model that can be run: a vocabulary, or an architecture that is not supported, is shown as far
//! as it goes, with the reason for what is not.

mod values;

use std::{collections::BTreeMap, thread};

use moe_run_backends::KvType;
use moe_run_backends::executable::{MICRO_BATCH, PoolSize};
use moe_run_graph::{
    architectures::lower_file,
    config::ModelConfig,
    gguf::{GgufFile, MetaArray, MetaValue, keys},
    ir::LeftOut,
    quant::{Format, GgmlType, NonFinite},
    shown::{shown, shown_bytes, shown_list},
};
use moe_run_text::tokenizer::TokenizerSummary;
use serde::Serialize;
use serde_json::{Value, json};

use values::metadata_text;

use crate::{
    CliError, ExitCode, announce,
    common::{self, DEFAULT_CTX_SIZE, ModelArgs},
    engine::human_bytes,
    output, progress,
};

/// Elements of a metadata array that are shown.
const ARRAY_SHOWN: usize = 8;
/// Characters of a metadata string that are shown as text; JSON has it whole.
const STRING_SHOWN: usize = 80;
/// Lines that are shown without `--all`, whatever the model.
const LINES_SHOWN: usize = 40;
/// Parts of a split model, formats, kinds of layers and damaged tensors that are listed within them.
const PARTS_SHOWN: usize = 2;
const FORMATS_SHOWN: usize = 6;
const KINDS_SHOWN: usize = 3;
const DAMAGED_SHOWN: usize = 4;
/// Bytes that a thread checks at a time.
const CHECK_CHUNK_BYTES: usize = 4 << 20;

/// Arguments of `inspect`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArgs,

    /// Tokens of the context that memory is estimated for [default: the model's own limit, 4096 at most]
    #[arg(short, long, value_name = "TOKENS", allow_negative_numbers = true, value_parser = common::whole_number::<usize>)]
    pub ctx_size: Option<usize>,

    /// Look through all tensors for scales and values that are not finite; exit status 1 where there are any
    #[arg(long)]
    pub check: bool,

    /// Show everything: every key of the metadata and every tensor, not the 40 lines that tell most
    #[arg(long)]
    pub all: bool,

    /// Print one JSON object, which always holds everything
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    file: String,
    file_bytes: u64,
    parts: Vec<Part>,
    architecture: Option<String>,
    metadata: Vec<Value>,
    tensors: Vec<Tensor>,
    formats: Vec<FormatTotal>,
    total_elems: u64,
    /// Without tensors whose size is not known.
    total_tensor_bytes: u64,
    /// Tensors that the model leaves out on purpose.
    left_out: Vec<LeftOut>,
    /// The dimensions, where the file is a model that can be run.
    #[serde(rename = "config")]
    dimensions: Option<ModelConfig>,
    memory: Option<Memory>,
    /// Why there is no `config` and no `memory`.
    not_runnable: Option<String>,
    /// How text becomes tokens, where the file has a tokenizer that is known.
    tokenizer: Option<TokenizerSummary>,
    /// Why there is none.
    no_tokenizer: Option<String>,
    check: Option<Check>,
}

#[derive(Serialize)]
struct Part {
    file: String,
    version: u32,
    alignment_bytes: usize,
    file_bytes: usize,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    format: GgmlType,
    /// `None` where the size of the type's blocks is not known.
    bytes: Option<usize>,
    part: usize,
    offset_bytes: usize,
}

#[derive(Serialize)]
struct FormatTotal {
    format: GgmlType,
    tensors: usize,
    elems: u64,
    /// `None` where the size of the type's blocks is not known.
    bytes: Option<u64>,
}

/// What a model takes in memory, as far as the file decides it; a backend's working buffers come on top.
#[derive(Serialize)]
struct Memory {
    ctx_size: usize,
    weights_bytes: u64,
    kv_cache: Vec<KvCache>,
}

#[derive(Serialize)]
struct KvCache {
    kv_type: &'static str,
    kv_bytes: u64,
    total_bytes: u64,
}

#[derive(Serialize)]
struct Check {
    tensors: usize,
    bytes: u64,
    damaged: Vec<Damaged>,
    /// Tensors whose bytes are all zero, as in a file written by `synth --dry-run`.
    zero_tensors: usize,
    /// Tensors that were not looked at: nothing here decodes their types.
    unchecked_tensors: usize,
}

#[derive(Serialize)]
struct Damaged {
    tensor: String,
    format: Format,
    /// Blocks with a scale or minimum that is not finite.
    scales: usize,
    /// Values that are not finite.
    values: usize,
    /// Index of the first of them.
    first: Vec<usize>,
}

/// Prints the report.
///
/// Errors: the file is unreadable or not a valid GGUF file, or standard output cannot be written.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.ctx_size == Some(0) {
        return Err(CliError::bad_input("--ctx-size: found 0, wanted at least 1 token"));
    }
    let file = args.model.open_file()?;
    let mut report = report(&file, args.ctx_size);
    if args.check {
        report.check = Some(check(&file));
    }
    if args.json {
        output::json(&report)?;
    } else {
        output::text(&text(&report, &file, args.all))?;
    }
    let damaged = report.check.is_some_and(|check| !check.damaged.is_empty());
    Ok(if damaged { ExitCode::Verdict } else { ExitCode::Ok })
}

fn report(file: &GgufFile, ctx_size: Option<usize>) -> Report {
    let tensors = file.tensors().iter().map(|t| Tensor {
        name: t.name.clone(),
        shape: t.shape.clone(),
        format: t.ggml_type,
        bytes: t.len_bytes(),
        part: t.part(),
        offset_bytes: t.offset_bytes(),
    });
    // Formats in their own order, then the types that nothing here decodes.
    let mut formats: BTreeMap<(bool, Option<Format>, u32), FormatTotal> = BTreeMap::new();
    for t in file.tensors() {
        let (ggml_type, format) = (t.ggml_type, t.format().ok());
        let total = FormatTotal { format: ggml_type, tensors: 0, elems: 0, bytes: Some(0) };
        let total = formats.entry((format.is_none(), format, ggml_type.number())).or_insert(total);
        total.tensors += 1;
        // Elements whose bytes are not known to be in the file can be any number.
        total.elems = total.elems.saturating_add(t.elems() as u64);
        total.bytes = total.bytes.zip(t.len_bytes()).map(|(sum, bytes)| sum + bytes as u64);
    }
    let formats: Vec<FormatTotal> = formats.into_values().collect();
    let total_tensor_bytes: u64 = formats.iter().filter_map(|f| f.bytes).sum();
    let (left_out, dimensions, memory, not_runnable) = match lower_file(file) {
        Ok((config, graph)) => {
            let left_out_bytes: u64 = graph.left_out.iter().map(|l| l.bytes).sum();
            let weights_bytes = total_tensor_bytes.saturating_sub(left_out_bytes);
            let ctx_size = ctx_size.unwrap_or(DEFAULT_CTX_SIZE.min(config.max_position_embeddings));
            // Rows that are not whole blocks cannot be kept in them.
            let whole = graph.states.iter().all(|state| state.row_elems().is_multiple_of(32));
            let possible = KvType::ALL.iter().filter(|kv| whole || **kv != KvType::Q8_0);
            let kv_cache = possible.map(|kv| {
                let kv_bytes = PoolSize::of_one(ctx_size, MICRO_BATCH).bytes(&graph, *kv);
                KvCache { kv_type: kv.name(), kv_bytes, total_bytes: kv_bytes.saturating_add(weights_bytes) }
            });
            let memory = Memory { ctx_size, weights_bytes, kv_cache: kv_cache.collect() };
            (graph.left_out, Some(config), Some(memory), None)
        }
        Err(error) => (Vec::new(), None, None, Some(error.to_string())),
    };
    let (tokenizer, no_tokenizer) = match TokenizerSummary::from_metadata(file.metadata()) {
        Ok(summary) => (Some(summary), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Report {
        schema_version: 1,
        file: file.metadata().origin().to_owned(),
        file_bytes: file.len_bytes(),
        parts: file
            .parts()
            .iter()
            .map(|p| Part {
                file: p.file().to_owned(),
                version: p.version(),
                alignment_bytes: p.alignment_bytes(),
                file_bytes: p.len_bytes(),
            })
            .collect(),
        architecture: file.metadata().opt_str(keys::GENERAL_ARCHITECTURE).ok().flatten().map(str::to_owned),
        metadata: file.metadata().iter().map(|(key, value)| metadata_json(key, value)).collect(),
        tensors: tensors.collect(),
        total_elems: formats.iter().fold(0, |sum, f| sum.saturating_add(f.elems)),
        total_tensor_bytes,
        formats,
        left_out,
        dimensions,
        memory,
        not_runnable,
        tokenizer,
        no_tokenizer,
        check: None,
    }
}

/// `{"key", "type", "value"}`, or for an array `{"key", "type", "len", "first"}`. Strings that are not UTF-8 are escaped;
/// `hex` or `first_hex` has their bytes exactly.
fn metadata_json(key: &str, value: &MetaValue) -> Value {
    let type_name = value.type_name();
    let value = match value {
        MetaValue::U8(v) => json!(v),
        MetaValue::I8(v) => json!(v),
        MetaValue::U16(v) => json!(v),
        MetaValue::I16(v) => json!(v),
        MetaValue::U32(v) => json!(v),
        MetaValue::I32(v) => json!(v),
        MetaValue::U64(v) => json!(v),
        MetaValue::I64(v) => json!(v),
        MetaValue::F32(v) => json!(shortest(*v)),
        MetaValue::F64(v) => json!(v),
        MetaValue::Bool(v) => json!(v),
        MetaValue::String(v) => json!(v),
        MetaValue::Bytes(v) => {
            return json!({"key": key, "type": type_name, "value": shown_bytes(v), "hex": output::hexadecimal(v)});
        }
        MetaValue::Array(array) => {
            let mut value =
                json!({"key": key, "type": type_name, "len": array.len(), "first": first_json(array)});
            if let MetaArray::Bytes(v) = array {
                value["first_hex"] = v.iter().take(ARRAY_SHOWN).map(|v| output::hexadecimal(v)).collect();
            }
            return value;
        }
    };
    json!({"key": key, "type": type_name, "value": value})
}

/// The double that is printed as the float is: 1e-6 and not 9.999999974752427e-7.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The first elements of an array.
fn first_json(array: &MetaArray) -> Value {
    fn first<T: Serialize>(v: &[T]) -> Value {
        json!(v[..v.len().min(ARRAY_SHOWN)])
    }
    match array {
        MetaArray::U8(v) => first(v),
        MetaArray::I8(v) => first(v),
        MetaArray::U16(v) => first(v),
        MetaArray::I16(v) => first(v),
        MetaArray::U32(v) => first(v),
        MetaArray::I32(v) => first(v),
        MetaArray::U64(v) => first(v),
        MetaArray::I64(v) => first(v),
        MetaArray::F32(v) => first(&v.iter().map(|&x| shortest(x)).collect::<Vec<_>>()),
        MetaArray::F64(v) => first(v),
        MetaArray::Bool(v) => first(v),
        MetaArray::String(v) => first(v),
        MetaArray::Bytes(v) => first(&v.iter().take(ARRAY_SHOWN).map(|v| shown_bytes(v)).collect::<Vec<_>>()),
        MetaArray::Array(v) => json!(v.iter().take(ARRAY_SHOWN).map(first_json).collect::<Vec<_>>()),
    }
}

/// Looks through all tensors, on all cores, with a progress bar where standard error is a terminal.
fn check(file: &GgufFile) -> Check {
    let decoded = || file.tensors().iter().filter_map(|t| Some((t, t.format().ok()?)));
    let bytes: u64 = decoded().map(|(t, _)| file.data(t).len() as u64).sum();
    let bar = progress::bar(bytes, "checking {wide_bar} {bytes}/{total_bytes}");
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let tensors = decoded().count();
    let unchecked_tensors = file.tensors().len() - tensors;
    let mut check = Check { tensors, bytes, damaged: Vec::new(), zero_tensors: 0, unchecked_tensors };
    for (tensor, format) in decoded() {
        let chunk_blocks = (CHECK_CHUNK_BYTES / format.block_bytes()).max(1);
        let data = file.data(tensor);
        let mut found = NonFinite::default();
        let mut is_zero = true;
        let mut begin_elems = 0;
        for batch in data.chunks(chunk_blocks * format.block_bytes() * threads) {
            let results: Vec<(usize, NonFinite, bool)> = thread::scope(|scope| {
                let work = |chunk: &[u8]| {
                    let elems = chunk.len() / format.block_bytes() * format.block_elems();
                    (elems, format.non_finite(chunk), chunk.iter().all(|&b| b == 0))
                };
                let chunks = batch.chunks(chunk_blocks * format.block_bytes());
                let (first, rest) = match chunks.clone().next() {
                    Some(first) => (first, chunks.skip(1)),
                    None => return Vec::new(),
                };
                let spawned: Vec<_> = rest.map(|chunk| scope.spawn(move || work(chunk))).collect();
                let mut results = vec![work(first)];
                for handle in spawned {
                    results.push(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
                }
                results
            });
            for (elems, later, zero) in results {
                found.merge(later, begin_elems);
                begin_elems += elems;
                is_zero &= zero;
            }
            bar.inc(batch.len() as u64);
        }
        check.zero_tensors += usize::from(is_zero);
        if let Some(first) = found.first_elem {
            check.damaged.push(Damaged {
                tensor: tensor.name.clone(),
                format,
                scales: found.scales,
                values: found.values,
                first: index_of(first, &tensor.shape),
            });
        }
    }
    bar.finish_and_clear();
    check
}

/// Element number `elem` as an index into `shape`.
fn index_of(mut elem: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i = elem % size;
        elem /= size;
    }
    index
}

/// The report for people: memory and formats first. Without `all`, at most [`LINES_SHOWN`] lines.
fn text(report: &Report, file: &GgufFile, all: bool) -> String {
    let metadata = metadata_lines(file, report.architecture.as_deref());
    let tensors = tensor_lines(report);
    let parts =
        [part_lines(report, all), memory_lines(report), format_lines(report, all), model_lines(report)];
    let mut lines = vec![format!("File: {} ({})", shown(&report.file), human_bytes(report.file_bytes))];
    lines.extend(parts.into_iter().flatten());
    if let Some(tokenizer) = &report.tokenizer {
        lines.push(format!("Tokenizer: {tokenizer}"));
    }
    let check = report.check.as_ref().map_or_else(Vec::new, |check| check_lines(check, all));

    let (keys, count) = (metadata.len(), tensors.len());
    let metadata_head = format!("Metadata: {keys} keys");
    let in_full = lines.len() + check.len() + 2 + keys + 2 + count;
    if all || in_full <= LINES_SHOWN {
        lines.extend([String::new(), metadata_head]);
        lines.extend(metadata);
        lines.extend([String::new(), format!("Tensors: {count}")]);
        lines.extend(tensors);
        lines.extend(check);
    } else {
        // Two lines above the keys, two for what is left out.
        let room = LINES_SHOWN.saturating_sub(lines.len() + check.len() + 4).min(keys);
        lines.extend([String::new(), metadata_head]);
        lines.extend(metadata.into_iter().take(room));
        lines.extend(check);
        let left_out = keys - room;
        lines.extend([
            String::new(),
            format!("--all shows {left_out} more keys of metadata and {count} tensors"),
        ]);
    }
    lines.join("\n") + "\n"
}

fn part_lines(report: &Report, all: bool) -> Vec<String> {
    let is_split = report.parts.len() > 1;
    let line = |part: &Part| {
        let of_split = if is_split { format!("  {}", shown(&part.file)) } else { "  GGUF".to_owned() };
        format!("{of_split} version {}, alignment {} bytes", part.version, part.alignment_bytes)
    };
    first(report.parts.iter().map(line).collect(), PARTS_SHOWN, "parts", all)
}

fn memory_lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(memory) = &report.memory {
        let tokens = memory.ctx_size;
        lines.push(String::new());
        lines.push(format!("Memory for a context of {tokens} tokens (working buffers come on top):"));
        lines.push(format!("  weights {}", human_bytes(memory.weights_bytes)));
        for kv in &memory.kv_cache {
            let (kv_bytes, total) = (human_bytes(kv.kv_bytes), human_bytes(kv.total_bytes));
            lines.push(format!("  KV cache {:5} {kv_bytes:>10}  together {total:>10}", kv.kv_type));
        }
    }
    if let Some(reason) = &report.not_runnable {
        // The report begins with the file's name.
        let named = format!("{}: ", shown(&report.file));
        let reason = reason.strip_prefix(&named).unwrap_or(reason);
        lines.push(String::new());
        lines.push(format!("Not a model that can be run: {}", shown(reason)));
    }
    lines
}

fn format_lines(report: &Report, all: bool) -> Vec<String> {
    if report.formats.is_empty() {
        return Vec::new();
    }
    // Those that hold most.
    let mut formats: Vec<&FormatTotal> = report.formats.iter().collect();
    formats.sort_by_key(|f| (std::cmp::Reverse(f.bytes), f.format.number()));
    let rows = formats.into_iter().map(|f| {
        let share = f.bytes.map(|bytes| 100.0 * bytes as f64 / report.total_tensor_bytes as f64);
        let share = share.map_or_else(String::new, |share| format!("  {share:5.1} %"));
        let bytes = human_size(f.bytes);
        format!("  {:7}  {:5} tensors  {:>15} elements  {bytes:>10}{share}", f.format, f.tensors, f.elems)
    });
    let mut lines = vec![String::new(), format!("Formats: {}", report.formats.len())];
    lines.extend(first(rows.collect(), FORMATS_SHOWN, "formats", all));
    let unsized_tensors: usize = report.formats.iter().filter(|f| f.bytes.is_none()).map(|f| f.tensors).sum();
    if unsized_tensors > 0 {
        lines.push(format!(
            "  {unsized_tensors} of a type whose blocks are not known here: where they end has not been checked"
        ));
    } else if report.total_elems > 0 {
        let bits = 8.0 * report.total_tensor_bytes as f64 / report.total_elems as f64;
        let (elems, bytes) = (report.total_elems, human_bytes(report.total_tensor_bytes));
        lines.push(format!("  total: {elems} elements in {bytes}, {bits:.2} bits each"));
    }
    lines
}

fn model_lines(report: &Report) -> Vec<String> {
    let Some(model) = &report.dimensions else { return Vec::new() };
    let mut lines = vec![String::new(), format!("Architecture: {}", shown(&model.architecture))];
    lines.push(format!(
        "  {} layers, hidden size {}, vocabulary {}, trained for {} tokens",
        model.num_hidden_layers, model.hidden_size, model.vocab_size, model.max_position_embeddings
    ));
    // Layers may differ: the kinds that there are, in the order of their first layers.
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for layer in &model.layers {
        let kind = format!("{}; {}", layer.mixer_text(), layer.ffn);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let rows = kinds.into_iter().map(|(kind, count)| format!("  {count} layers: {kind}")).collect();
    lines.extend(first(rows, KINDS_SHOWN, "kinds of layers", false));
    let left_out = announce::left_out_lines(&report.left_out);
    lines
        .extend(first(left_out, KINDS_SHOWN, "parts left out", false).iter().map(|line| format!("  {line}")));
    if !model.unused_keys.is_empty() {
        lines.push(format!("  not known, without effect: {}", shown_list(&model.unused_keys)));
    }
    lines
}

/// Every key, those first that tell most.
fn metadata_lines(file: &GgufFile, architecture: Option<&str>) -> Vec<String> {
    const FIRST: [&str; 5] = [
        keys::GENERAL_NAME,
        keys::GENERAL_BASENAME,
        keys::GENERAL_SIZE_LABEL,
        keys::GENERAL_FILE_TYPE,
        keys::TOKENIZER_MODEL,
    ];
    let prefix = architecture.map(|name| format!("{name}."));
    let rank = |key: &str| match FIRST.iter().position(|first| *first == key) {
        Some(place) => place,
        None if prefix.as_ref().is_some_and(|prefix| key.starts_with(prefix.as_str())) => FIRST.len(),
        None if key.starts_with("general.") => FIRST.len() + 1,
        None => FIRST.len() + 2,
    };
    let mut pairs: Vec<(&str, &MetaValue)> = file.metadata().iter().collect();
    pairs.sort_by_key(|(key, _)| rank(key));
    pairs.iter().map(|(key, value)| format!("  {} = {}", shown(key), metadata_text(value))).collect()
}

fn tensor_lines(report: &Report) -> Vec<String> {
    let widest = report.tensors.iter().map(|t| shown(&t.name).to_string().chars().count()).max().unwrap_or(0);
    let line = |t: &Tensor| {
        let (shape, bytes) = (format!("{:?}", t.shape), human_size(t.bytes.map(|bytes| bytes as u64)));
        format!("  {:widest$}  {:6}  {bytes:>10}  {shape}", shown(&t.name), t.format)
    };
    report.tensors.iter().map(line).collect()
}

fn check_lines(check: &Check, all: bool) -> Vec<String> {
    let bytes = human_bytes(check.bytes);
    let (tensors, damaged) = (check.tensors, check.damaged.len());
    let mut lines = vec![
        String::new(),
        format!("Check: {tensors} tensors, {bytes}: {damaged} with scales or values that are not finite"),
    ];
    let line = |d: &Damaged| {
        let Damaged { tensor, format, scales, values, first } = d;
        let tensor = shown(tensor);
        format!("  {tensor} ({format}): {scales} scales, {values} values, the first at {first:?}")
    };
    lines.extend(first(check.damaged.iter().map(line).collect(), DAMAGED_SHOWN, "tensors", all));
    if check.unchecked_tensors > 0 {
        lines.push(format!(
            "  {} tensors were not looked at: nothing here decodes their types",
            check.unchecked_tensors
        ));
    }
    if check.zero_tensors > 0 {
        lines.push(format!("  {} tensors are all zero: a file without weights?", check.zero_tensors));
    }
    lines
}

/// The first `shown` lines, and how many `things` more there are; all where there is but one more.
fn first(mut lines: Vec<String>, shown: usize, things: &str, all: bool) -> Vec<String> {
    if !all && lines.len() > shown + 1 {
        let more = lines.split_off(shown).len();
        lines.push(format!("  … and {more} {things} more"));
    }
    lines
}

/// A size for people, where it is known.
fn human_size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "? B".to_owned(), human_bytes)
}
