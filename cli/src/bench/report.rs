//! The results, as a table for people, as JSON and as CSV.

use std::fmt::Write;

use moe_run_graph::{Model, cost::Cost, shown::shown};
use serde::Serialize;

use super::{machine::Machine, measure::Test, profile::Profile};

/// Everything that a bench says.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this object.
    pub schema_version: u32,
    /// moe-run's version.
    pub version: &'static str,
    /// The commit that it was built from; `None` for a build outside of its repository.
    pub commit: Option<&'static str>,
    /// The model.
    pub model: ModelSummary,
    /// The machine.
    pub machine: Machine,
    /// How it was run.
    pub settings: Settings,
    /// A row a test and number of threads.
    pub results: Vec<Row>,
    /// Where the time of each test goes, with `--profile`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Profile>,
    /// The process's largest resident memory, mapped files included.
    pub peak_memory_bytes: Option<u64>,
}

/// Which model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSummary {
    /// The file's name, without its directories.
    pub file: String,
    /// What the file calls the model.
    pub name: Option<String>,
    /// Its architecture.
    pub architecture: String,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
}

impl ModelSummary {
    /// Of a model that has been read.
    pub fn of(model: &Model) -> ModelSummary {
        let origin = model.metadata().origin();
        ModelSummary {
            file: origin.rsplit(['/', '\\']).next().unwrap_or(origin).to_owned(),
            name: model.config.name.clone(),
            architecture: model.config.architecture.clone(),
            num_hidden_layers: model.config.num_hidden_layers,
            weight_bytes: model.file.tensors().iter().map(|t| model.file.data(t).len() as u64).sum(),
        }
    }
}

/// How it was run.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// In use.
    pub backend: &'static str,
    /// In use.
    pub device: String,
    /// In use.
    pub activations: String,
    /// In use.
    pub kv_type: String,
    /// The largest step of a prompt.
    pub micro_batch: usize,
    /// Timed runs of each test.
    pub repetitions: usize,
    /// Of the random tokens.
    pub seed: u64,
}

/// One test with one number of threads.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub test: String,
    /// What it is.
    #[serde(flatten)]
    pub shape: Test,
    /// Threads of the processor; 1 on other devices.
    pub threads: usize,
    /// The median.
    pub tokens_per_second: f64,
    /// The slowest run.
    pub tokens_per_second_min: f64,
    /// The fastest run.
    pub tokens_per_second_max: f64,
    /// Weights and KV rows that a run moves, by the plan; of the experts those that the tokens choose.
    pub bytes: u64,
    /// Arithmetic of a run's products, by the plan.
    pub flops: u64,
    /// `bytes` over the median time, in 10⁹ bytes a second.
    pub gb_per_second: f64,
    /// What memory allows: on the processor what a plain read loop gets with as many threads, on a CUDA device what a copy
    /// within it reads and writes; `None` elsewhere.
    pub read_gb_per_second: Option<f64>,
    /// `gb_per_second` over it.
    pub share_of_read: Option<f64>,
    /// From opening the file to the allocated KV cache; with another number of threads, of compiling anew.
    pub load_seconds: f64,
    /// Each run.
    pub seconds: Vec<f64>,
}

impl Row {
    /// A row from its runs.
    pub fn new(shape: Test, threads: usize, seconds: Vec<f64>, cost: Cost, load_seconds: f64) -> Row {
        let speed = |s: f64| shape.tokens as f64 / s;
        let typical = median(&seconds);
        let bytes = cost.streamed_bytes();
        let gb_per_second = bytes as f64 / typical / 1e9;
        Row {
            test: shape.name(),
            shape,
            threads,
            tokens_per_second: speed(typical),
            tokens_per_second_min: speed(seconds.iter().copied().fold(0.0, f64::max)),
            tokens_per_second_max: speed(seconds.iter().copied().fold(f64::INFINITY, f64::min)),
            bytes,
            flops: cost.flops,
            gb_per_second,
            read_gb_per_second: None,
            share_of_read: None,
            load_seconds,
            seconds,
        }
    }

    /// Sets the row against what the memory allows, in 10⁹ bytes a second.
    pub fn set_read_bandwidth(&mut self, gb_per_second: f64) {
        self.read_gb_per_second = Some(gb_per_second);
        self.share_of_read = Some(self.gb_per_second / gb_per_second);
    }
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

impl Report {
    /// A list of what was run, then a table.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let (m, s) = (&self.model, &self.settings);
        let name = m.name.as_ref().map_or(String::new(), |n| format!(" ({})", shown(n)));
        let commit = self.commit.map_or(String::new(), |c| format!(", commit {c}"));
        let memory = self.machine.memory_bytes.map_or(String::new(), |b| format!(", {:.0} GB", gb(b)));
        let peak = self.peak_memory_bytes.map_or(String::new(), |b| format!(", peak memory {:.2} GB", gb(b)));
        let lines = [
            format!("- moe-run {}{commit}", self.version),
            format!(
                "- model: {}{name}, {}, {} layers, {:.2} GB of weights",
                shown(&m.file),
                m.architecture,
                m.num_hidden_layers,
                gb(m.weight_bytes)
            ),
            format!(
                "- machine: {}, {} hardware threads{memory}, {}",
                self.machine.processor, self.machine.hardware_threads, self.machine.system
            ),
            format!(
                "- backend: {} on {}; activations {}, KV cache {}, micro-batch {}; {} repetitions, seed {}{peak}",
                s.backend, s.device, s.activations, s.kv_type, s.micro_batch, s.repetitions, s.seed
            ),
        ];
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str("\n| test | threads | tokens/s (median) | min – max | GB/s | memory GB/s | share |\n");
        text.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
        for r in &self.results {
            let limit = r.read_gb_per_second.map_or("–".to_owned(), |x| format!("{x:.1}"));
            let share = r.share_of_read.map_or("–".to_owned(), |x| format!("{:.0} %", x * 100.0));
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} – {} | {:.1} | {limit} | {share} |",
                r.test,
                r.threads,
                speed(r.tokens_per_second),
                speed(r.tokens_per_second_min),
                speed(r.tokens_per_second_max),
                r.gb_per_second,
            );
        }
        for profile in &self.profiles {
            text.push_str(&profile.markdown());
        }
        if let Some(llc) = self.machine.last_level_cache_bytes
            && self.model.weight_bytes < llc
        {
            text.push_str("\nThe weights fit in the last-level cache: the memory is no limit here.\n");
        }
        text
    }

    /// A line a row; what is the same for all is repeated in each.
    pub fn csv(&self) -> String {
        let mut text = String::from(
            "version,commit,model,machine,backend,device,activations,kv_type,test,threads,tokens,depth,\
             tokens_per_second,tokens_per_second_min,tokens_per_second_max,bytes,gb_per_second,read_gb_per_second,\
             load_seconds\n",
        );
        for r in &self.results {
            let cells = [
                self.version.to_owned(),
                self.commit.unwrap_or_default().to_owned(),
                shown(&self.model.file).to_string(),
                self.machine.processor.clone(),
                self.settings.backend.to_owned(),
                self.settings.device.clone(),
                self.settings.activations.clone(),
                self.settings.kv_type.clone(),
                r.test.clone(),
                r.threads.to_string(),
                r.shape.tokens.to_string(),
                r.shape.depth.to_string(),
                r.tokens_per_second.to_string(),
                r.tokens_per_second_min.to_string(),
                r.tokens_per_second_max.to_string(),
                r.bytes.to_string(),
                r.gb_per_second.to_string(),
                r.read_gb_per_second.map_or(String::new(), |x| x.to_string()),
                r.load_seconds.to_string(),
            ];
            text.push_str(&cells.map(|c| csv_cell(&c)).join(","));
            text.push('\n');
        }
        text
    }
}

/// Four digits that count.
fn speed(tokens_per_second: f64) -> String {
    match tokens_per_second {
        x if x >= 1000.0 => format!("{x:.0}"),
        x if x >= 100.0 => format!("{x:.1}"),
        x => format!("{x:.2}"),
    }
}

/// RFC 4180: quoted where it holds a comma, a quote or a line end.
fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn cells_with_commas_are_quoted() {
        assert_eq!(csv_cell("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(csv_cell("plain"), "plain");
    }
}
