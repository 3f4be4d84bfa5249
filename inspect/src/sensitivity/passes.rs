//! Passes of a whole model and of its parts over the same chunks of text.

use std::collections::HashMap;
use std::sync::Arc;

use moe_run_graph::Model;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, ValueId};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    CompileOptions, Executable, HostTensor, Observer, StepInput, StepSequence, StepTokens, TensorData,
    ValueAccess, WeightSource, blocks_in_order,
};

use super::parts::Part;
use super::{Options, SensitivityError};
use crate::perplexity::log_softmax;

/// Logits that are kept of a chunk, in all its rows together: 128 MiB.
const MAX_LOGITS: usize = 32 << 20;

/// A file of which some tensors are in other formats.
pub(super) struct Overlay {
    file: Arc<GgufFile>,
    changed: HashMap<String, (Format, Vec<u8>)>,
}

impl Overlay {
    pub fn new(file: Arc<GgufFile>) -> Overlay {
        Overlay { file, changed: HashMap::new() }
    }

    pub fn change(&mut self, name: &str, format: Format, bytes: Vec<u8>) {
        self.changed.insert(name.to_owned(), (format, bytes));
    }

    /// A graph that declares the formats that are here.
    fn declare(&self, graph: &Graph) -> Graph {
        let mut graph = graph.clone();
        for decl in &mut graph.weights {
            if let Some((format, _)) = self.changed.get(&decl.name) {
                decl.format = *format;
            }
        }
        graph
    }
}

impl WeightSource for Overlay {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        match self.changed.get(name) {
            Some((_, bytes)) => Some(bytes),
            None => self.file.bytes(name),
        }
    }
}

/// Values on the host by their ids.
type Values = HashMap<ValueId, HostTensor>;

/// What the model as it is reads, gives and predicts, chunk by chunk.
pub(super) struct Baseline {
    values: Vec<Values>,
    /// ln p over the vocabulary, row by row.
    log_probs: Vec<Vec<Vec<f64>>>,
    /// The rows whose logits are kept: the last of each chunk.
    rows: Vec<u32>,
}

/// Writes boundary inputs before the first launch; adds errors to values behind the launches that make them.
#[derive(Default)]
struct Hand<'a> {
    boundary: Option<&'a Values>,
    errors: Option<&'a Values>,
}

impl Observer for Hand<'_> {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let is_first = plan.launches.first().is_some_and(|first| first.id == launch.id);
        if let Some(given) = self.boundary.filter(|_| is_first) {
            for id in &plan.graph.boundary {
                if let Some(tensor) = given.get(id) {
                    values.write(*id, tensor)?;
                }
            }
        }
        Ok(())
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: std::time::Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let Some(errors) = self.errors else { return Ok(()) };
        for id in plan.launch_nodes(launch).flat_map(|node| node.outputs.iter()) {
            if let Some(error) = errors.get(id) {
                let mut value = values.read(*id)?;
                if let (TensorData::F32(value), TensorData::F32(error)) = (&mut value.data, &error.data) {
                    value.iter_mut().zip(error).for_each(|(x, e)| *x += e);
                }
                values.write(*id, &value)?;
            }
        }
        Ok(())
    }
}

/// Evaluates a chunk from an empty context.
fn step(
    executable: &mut dyn Executable,
    tokens: &[TokenId],
    logits_rows: &[u32],
    hand: &mut Hand<'_>,
) -> Result<(), BackendError> {
    let mut state = executable.new_state()?;
    let blocks = blocks_in_order(state.capacity_tokens());
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let input = StepInput {
        tokens: StepTokens::Host(tokens),
        positions: &positions,
        sequence: &vec![0; tokens.len()],
        kv_slots: &positions,
        sequences: &[StepSequence { blocks: &blocks, place: 0 }],
        logits_rows,
    };
    executable.step(state.as_mut(), &input, Some(hand))
}

/// What whole chunks in one step need.
fn compile_options(options: &Options<'_>, rows: usize) -> CompileOptions {
    let tokens = options.chunks.first().map_or(1, Vec::len);
    CompileOptions {
        ctx_size: tokens,
        micro_batch: Some(tokens),
        max_logits_rows: rows,
        ..options.compile.clone()
    }
}

impl Baseline {
    /// One pass of the model as it is.
    ///
    /// # Errors
    /// What running reports; a value that a part gives never leaves a launch.
    pub fn run(model: &Model, parts: &[Part], options: &Options<'_>) -> Result<Baseline, SensitivityError> {
        let tokens = options.chunks.first().map_or(1, Vec::len);
        let vocab_size = model.config.vocab_size.max(1);
        let rows = (tokens / 2).min(MAX_LOGITS / vocab_size).max(1);
        let rows: Vec<u32> = ((tokens - rows) as u32..tokens as u32).collect();
        let graph = whole(model, parts);
        let source: Arc<dyn WeightSource> = model.file.clone();
        let mut executable =
            options.backend.compile(&graph, source, &compile_options(options, rows.len()))?;
        check_launches(executable.plan(tokens), parts, options)?;
        let mut baseline = Baseline { values: Vec::new(), log_probs: Vec::new(), rows };
        for chunk in options.chunks {
            step(executable.as_mut(), chunk, &baseline.rows, &mut Hand::default())?;
            let mut values = Values::new();
            for (i, id) in graph.outputs.iter().enumerate().skip(model.graph.outputs.len()) {
                values.insert(*id, executable.output(i)?);
            }
            baseline.values.push(values);
            baseline.log_probs.push(log_probs(executable.as_mut(), baseline.rows.len())?);
        }
        Ok(baseline)
    }

    /// What a part gives with other weights, less what it gives as it is, from the inputs that it has as it is.
    ///
    /// # Errors
    /// What running reports.
    pub fn part_errors(
        &self,
        part: &Part,
        overlay: Arc<Overlay>,
        options: &Options<'_>,
    ) -> Result<Vec<Values>, SensitivityError> {
        let graph = overlay.declare(&part.graph);
        let mut executable = options.backend.compile(&graph, overlay, &compile_options(options, 1))?;
        let mut errors = Vec::new();
        for (chunk, values) in options.chunks.iter().zip(&self.values) {
            let mut hand = Hand { boundary: Some(values), errors: None };
            step(executable.as_mut(), chunk, &[0], &mut hand)?;
            let mut of_chunk = Values::new();
            for (i, id) in part.graph.outputs.iter().enumerate() {
                let mut output = executable.output(i)?;
                if let (TensorData::F32(now), Some(TensorData::F32(before))) =
                    (&mut output.data, values.get(id).map(|t| &t.data))
                {
                    now.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
                }
                of_chunk.insert(*id, output);
            }
            errors.push(of_chunk);
        }
        Ok(errors)
    }

    /// The divergence of the head's predictions with other weights.
    ///
    /// # Errors
    /// What running reports.
    pub fn head_divergence(
        &self,
        part: &Part,
        overlay: Arc<Overlay>,
        options: &Options<'_>,
    ) -> Result<f64, SensitivityError> {
        let graph = overlay.declare(&part.graph);
        let options_of = compile_options(options, self.rows.len());
        let mut executable = options.backend.compile(&graph, overlay, &options_of)?;
        self.divergence(executable.as_mut(), options, |values, _| Hand {
            boundary: Some(values),
            errors: None,
        })
    }

    /// The divergence of the model's predictions with errors added to what a part gives.
    ///
    /// # Errors
    /// What running reports.
    pub fn divergence_with(
        &self,
        model: &Model,
        part: &Part,
        errors: &[Values],
        options: &Options<'_>,
    ) -> Result<f64, SensitivityError> {
        let graph = whole(model, std::slice::from_ref(part));
        let source: Arc<dyn WeightSource> = model.file.clone();
        let options_of = compile_options(options, self.rows.len());
        let mut executable = options.backend.compile(&graph, source, &options_of)?;
        let tokens = options.chunks.first().map_or(1, Vec::len);
        check_launches(executable.plan(tokens), std::slice::from_ref(part), options)?;
        self.divergence(executable.as_mut(), options, |_, chunk| Hand {
            boundary: None,
            errors: Some(&errors[chunk]),
        })
    }

    fn divergence<'a>(
        &'a self,
        executable: &mut dyn Executable,
        options: &Options<'_>,
        hand: impl Fn(&'a Values, usize) -> Hand<'a>,
    ) -> Result<f64, SensitivityError> {
        let (mut sum, mut rows) = (0.0, 0);
        for (i, chunk) in options.chunks.iter().enumerate() {
            step(executable, chunk, &self.rows, &mut hand(&self.values[i], i))?;
            for (base, now) in self.log_probs[i].iter().zip(log_probs(executable, self.rows.len())?) {
                sum += base.iter().zip(&now).map(|(b, n)| b.exp() * (b - n)).sum::<f64>().max(0.0);
                rows += 1;
            }
        }
        Ok(sum / rows.max(1) as f64)
    }
}

/// The model, with what parts give as further outputs: those are then stored.
fn whole(model: &Model, parts: &[Part]) -> Graph {
    let mut graph = model.graph.clone();
    for value in parts.iter().filter(|part| !part.is_head).flat_map(|part| &part.graph.outputs) {
        if !graph.outputs.contains(value) {
            graph.outputs.push(*value);
        }
    }
    graph
}

/// Errors are added between launches: no launch may make a part's value and read it too.
fn check_launches(plan: &Plan, parts: &[Part], options: &Options<'_>) -> Result<(), SensitivityError> {
    for part in parts.iter().filter(|part| !part.is_head) {
        for value in &part.graph.outputs {
            let reads = |launch: &Launch| plan.launch_nodes(launch).any(|node| node.inputs.contains(value));
            if !plan.is_stored(*value) || plan.launch_of(*value).is_some_and(reads) {
                return Err(SensitivityError::Fused {
                    part: part.name.clone(),
                    backend: options.backend.name(),
                });
            }
        }
    }
    Ok(())
}

/// ln p over the vocabulary, of each row of the last step.
fn log_probs(executable: &mut dyn Executable, rows: usize) -> Result<Vec<Vec<f64>>, BackendError> {
    let mut logits = Vec::new();
    (0..rows)
        .map(|row| {
            executable.logits(row, &mut logits)?;
            let mut log_probs = Vec::new();
            log_softmax(&logits, &mut log_probs);
            Ok(log_probs)
        })
        .collect()
}

/// The mean over positions, and the sum over what a part gives, of |error|² / |value|².
pub(super) fn mean_square_ratio(errors: &[Values], baseline: &Baseline, part: &Part) -> f64 {
    let (mut sum, mut rows) = (0.0, 0usize);
    for (errors, values) in errors.iter().zip(&baseline.values) {
        for id in &part.graph.outputs {
            let (Some(error), Some(value)) = (errors.get(id), values.get(id)) else { continue };
            let (TensorData::F32(e), TensorData::F32(v)) = (&error.data, &value.data) else { continue };
            let width = value.shape.iter().skip(1).product::<usize>().max(1);
            let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            for (e, v) in e.chunks_exact(width).zip(v.chunks_exact(width)) {
                let size = square(v);
                sum += if size > 0.0 { square(e) / size } else { 0.0 };
                rows += 1;
            }
        }
    }
    sum * part.graph.outputs.len() as f64 / rows.max(1) as f64
}
