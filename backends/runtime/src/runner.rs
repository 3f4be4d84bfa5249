//! How a step goes, on any device and on the host: checks, inputs, launches, observers, and what is read afterwards.
//!
//! Input: plans of one graph, a class of steps each, and a [`Recorder`] that runs their launches. Output: an
//! [`Executable`]. What a device does by itself (memory, queues, recordings, choosing from logits) is the recorder's; what no
//! device may do differently is here. Deliberately absent: anything between two steps but the sizes of the last one.

mod kept;
mod logits_row;
mod pool;
mod recorder;
mod values;

pub use recorder::Recorder;

use crate::choice::{argmax, best_candidates};
use crate::error::BackendError;
use crate::executable::{
    Executable, ExecutableInfo, HostTensor, Observer, SequenceStates, State, StepInput, StepLimits,
    StepTokens, TensorView, ViewData, deliver_taps,
};
use crate::rings;
pub use logits_row::LogitsRow;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, StepSizes, ValueId};
use moe_run_graph::passes::Plan;
use pool::Pool;
use std::borrow::Cow;
use std::sync::Arc;
use values::{StepValues, write_value};

/// A step, its input checked.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// The plan that it runs, by number.
    pub class: usize,
    /// That plan.
    pub plan: &'a Plan,
    /// T, R and S.
    pub sizes: StepSizes,
    /// What it computes.
    pub input: &'a StepInput<'a>,
}

impl<'a> Step<'a> {
    /// Whether its token is the one that [`Recorder::choose_next`] has put in its place.
    #[must_use]
    pub fn takes_choice(&self) -> bool {
        matches!(self.input.tokens, StepTokens::Argmax { .. })
    }

    /// The graph's inputs with their words, in the graph's order; `None` for a token that is in its place.
    #[must_use]
    pub fn inputs(&self) -> [(ValueId, Option<&'a [u32]>); 5] {
        let (inputs, given) = (&self.plan.graph.inputs, self.input);
        let tokens = match given.tokens {
            StepTokens::Host(tokens) => Some(bytemuck::cast_slice(tokens)),
            StepTokens::Argmax { .. } => None,
        };
        [
            (inputs.tokens, tokens),
            (inputs.positions, Some(given.positions)),
            (inputs.sequence, Some(given.sequence)),
            (inputs.kv_slots, Some(given.kv_slots)),
            (inputs.logits_rows, Some(given.logits_rows)),
        ]
    }
}

/// An executable: a recorder, and the plans that it was made for.
pub struct Runner<R> {
    recorder: R,
    /// By class; the last one takes the most tokens.
    plans: Vec<Arc<Plan>>,
    vocab_size: Option<usize>,
    /// Class and sizes of the last step; `None` before the first, and behind one that failed.
    last: Option<(usize, StepSizes)>,
    /// The token that the last step took from the step before, where the host chose it.
    taken: Option<TokenId>,
    /// Rows of logits of the last step of several sequences, run one after another; `None` behind any other step.
    each: Option<Vec<Vec<f32>>>,
    /// Boundary inputs of the next step.
    given: Vec<(ValueId, HostTensor)>,
    /// The launches of the step that runs, where it does not run all.
    only: Option<Vec<usize>>,
}

impl<R: Recorder> Runner<R> {
    /// Puts the parts together.
    #[must_use]
    pub fn new(recorder: R, plans: Vec<Arc<Plan>>) -> Runner<R> {
        let vocab_size = plans.first().and_then(|plan| plan.graph.vocab_size());
        Runner {
            recorder,
            plans,
            vocab_size,
            last: None,
            taken: None,
            each: None,
            given: Vec::new(),
            only: None,
        }
    }

    /// What runs the launches.
    #[must_use]
    pub fn recorder(&self) -> &R {
        &self.recorder
    }

    fn class(&self, tokens: usize) -> usize {
        let fits = self.plans.iter().position(|plan| plan.max_sizes.tokens >= tokens);
        fits.unwrap_or(self.plans.len() - 1)
    }

    /// A row of the last step's logits.
    fn row(&self, row: usize) -> Result<LogitsRow, BackendError> {
        let rows = self.last.map_or(0, |(_, sizes)| sizes.logits_rows);
        let missing = || BackendError::Input(format!("row {row} of {rows} rows of logits"));
        let (class, sizes) = self.last.filter(|_| row < rows).ok_or_else(missing)?;
        LogitsRow::of(&self.plans[class], class, sizes, row).ok_or_else(missing)
    }

    /// Checks an input for a state of so many slots and places.
    fn check(&self, input: &StepInput<'_>, slots: usize, places: usize) -> Result<(), BackendError> {
        let sizes = self.plans[self.class(input.len())].max_sizes;
        input.check(&StepLimits { sizes, vocab_size: self.vocab_size, slots, places })
    }

    /// A checked step, of as many sequences as the recorder takes.
    fn step_checked(
        &mut self,
        state: &mut R::State,
        input: &StepInput<'_>,
        given: &[(ValueId, HostTensor)],
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let max_tokens = self.plans.last().map_or(0, |plan| plan.max_sizes.tokens);
        let holds = rings::hold(state.rings(), &self.plans[0].graph.states, max_tokens);
        if !holds || !self.recorder.fits(state) {
            return Err(BackendError::Input("the state belongs to another executable".into()));
        }
        self.recorder.check()?;
        let chosen = match input.tokens {
            StepTokens::Host(_) => None,
            StepTokens::Argmax { row } => {
                let row = self.row(row)?;
                self.recorder.choose_next(&row)?
            }
        };
        let tokens = if chosen.is_some() { StepTokens::Host(chosen.as_slice()) } else { input.tokens };
        let input = &StepInput { tokens, ..*input };
        (self.last, self.taken) = (None, chosen);
        let class = self.class(input.len());
        let plan = Arc::clone(&self.plans[class]);
        let step = Step { class, plan: &plan, sizes: input.sizes(), input };
        self.recorder.begin(&step)?;
        for (value, tensor) in given {
            write_value(&mut self.recorder, &step, *value, tensor)?;
        }
        match (observer, self.only.take()) {
            (None, None) => self.recorder.run(&step, state)?,
            (None, Some(launches)) => {
                for launch in launches.into_iter().filter(|launch| *launch < plan.launches.len()) {
                    self.recorder.run_launch(&step, launch, state)?;
                }
            }
            (Some(observer), _) => self.observed(&step, state, observer)?,
        }
        self.last = Some((class, step.sizes));
        Ok(())
    }

    /// A step of several sequences, one after another, each as it is alone; their rows of logits are kept on the host.
    fn step_each(
        &mut self,
        pool: &mut Pool<R::State>,
        input: &StepInput<'_>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        self.check(input, pool.capacity_tokens(), pool.max_sequences())?;
        let StepTokens::Host(tokens) = input.tokens else {
            return Err(BackendError::Input("a token from the device, for a pool of sequences".into()));
        };
        let mut logits = vec![Vec::new(); input.logits_rows.len()];
        for run in input.runs() {
            let place = input.sequences[run.sequence].place as usize;
            // The rows of logits that are this run's: which they are here, and of the run.
            let wanted = input.logits_rows.iter().map(|row| *row as usize).enumerate();
            let wanted: Vec<(usize, usize)> = wanted
                .filter(|(_, row)| run.rows.contains(row))
                .map(|(i, row)| (i, row - run.rows.start))
                .collect();
            let logits_rows: Vec<u32> = wanted.iter().map(|(_, row)| *row as u32).collect();
            let positions = &input.positions[run.rows.clone()];
            let alone = StepInput {
                tokens: StepTokens::Host(&tokens[run.rows.clone()]),
                positions,
                sequence: &vec![0; run.rows.len()],
                kv_slots: positions,
                sequences: &[],
                logits_rows: &logits_rows,
            };
            let observer: Option<&mut dyn Observer> = match observer.as_mut() {
                Some(observer) => Some(&mut **observer),
                None => None,
            };
            self.step_checked(&mut pool.states[place], &alone, &[], observer)?;
            for (at, (i, _)) in wanted.iter().enumerate() {
                let row = self.row(at)?;
                self.recorder.logits(&row, &mut logits[*i])?;
            }
        }
        self.last = None;
        self.each = Some(logits);
        Ok(())
    }

    /// The launches of a step, held between any two.
    fn observed(
        &mut self,
        step: &Step<'_>,
        state: &mut R::State,
        observer: &mut dyn Observer,
    ) -> Result<(), BackendError> {
        for (launch, of_plan) in step.plan.launches.iter().enumerate() {
            let mut values = StepValues { recorder: &mut self.recorder, state, step, launch };
            observer.before_launch(step.plan, of_plan, &mut values)?;
            let elapsed = values.recorder.run_launch(step, launch, values.state)?;
            observer.after_launch(step.plan, of_plan, elapsed, &mut values)?;
            deliver_taps(step.plan, of_plan, step.input, &mut values, observer)?;
        }
        Ok(())
    }
}

impl<R: Recorder> Executable for Runner<R> {
    fn info(&self) -> &ExecutableInfo {
        self.recorder.info()
    }

    fn plan(&self, tokens: usize) -> &Plan {
        &self.plans[self.class(tokens)]
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(self.recorder.new_state()?))
    }

    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<Box<dyn State>, BackendError> {
        if R::BLOCK_TABLES {
            return Ok(Box::new(self.recorder.new_pool(tokens, sequences)?));
        }
        Ok(Box::new(Pool::new(&self.recorder, tokens, sequences)?))
    }

    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        self.each = None;
        let given = std::mem::take(&mut self.given);
        let state = state.as_any_mut();
        if let Some(pool) = state.downcast_mut::<Pool<R::State>>() {
            if let Some((value, _)) = given.first() {
                return Err(wrong(value, "given to a pool whose sequences run one after another"));
            }
            return self.step_each(pool, input, observer);
        }
        let Some(state) = state.downcast_mut::<R::State>() else {
            return Err(BackendError::Input("the state belongs to another backend".into()));
        };
        self.check(input, state.capacity_tokens(), state.max_sequences())?;
        if !R::BLOCK_TABLES {
            input.check_one_sequence()?;
        }
        self.step_checked(state, input, &given, observer)
    }

    fn give(&mut self, value: ValueId, tensor: HostTensor) -> Result<(), BackendError> {
        if !self.plans[0].graph.boundary.contains(&value) {
            return Err(wrong(value, "no boundary input of the graph"));
        }
        self.given.retain(|(given, _)| *given != value);
        self.given.push((value, tensor));
        Ok(())
    }

    fn step_launches(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        launches: &[usize],
    ) -> Result<(), BackendError> {
        self.only = Some(launches.to_vec());
        let done = self.step(state, input, None);
        self.only = None; // of a step that was refused, too
        done
    }

    fn runs_together(&self) -> bool {
        R::BLOCK_TABLES
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        if let Some(rows) = &self.each {
            out.clone_from(row_of(rows, row)?);
            return Ok(());
        }
        let row = self.row(row)?;
        self.recorder.logits(&row, out)
    }

    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        if let Some(rows) = &self.each {
            let row = row_of(rows, row)?;
            return argmax(&row[..self.choosable(row.len())]);
        }
        let row = self.row(row)?;
        self.recorder.argmax(&row)
    }

    fn candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        if let Some(rows) = &self.each {
            let row = row_of(rows, row)?;
            return best_candidates(&row[..self.choosable(row.len())], count, out);
        }
        let row = self.row(row)?;
        self.recorder.candidates(&row, count, out)
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        match self.taken {
            Some(token) => Ok(token),
            None => self.recorder.taken(),
        }
    }

    fn queues_steps(&self) -> bool {
        self.recorder.queues_steps()
    }

    fn expect_candidates(&mut self, count: usize) {
        self.recorder.expect_candidates(count);
    }

    fn copy_bytes_per_second(&mut self) -> Result<Option<f64>, BackendError> {
        self.recorder.copy_bytes_per_second()
    }

    fn read_sequence(
        &mut self,
        state: &mut dyn State,
        place: usize,
        len_tokens: usize,
    ) -> Result<SequenceStates, BackendError> {
        kept::read(&mut self.recorder, &self.plans[0].graph, state, place, len_tokens)
    }

    fn restore_sequence(
        &mut self,
        state: &mut dyn State,
        place: usize,
        len_tokens: usize,
        kept: &SequenceStates,
    ) -> Result<(), BackendError> {
        kept::restore(&mut self.recorder, &self.plans[0].graph, state, place, len_tokens, kept)
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        self.recorder.wait()
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let missing =
            |detail: &str| BackendError::Value { value: format!("output {index}"), detail: detail.into() };
        let (class, sizes) = self.last.ok_or_else(|| missing("no step has computed it"))?;
        let plan = Arc::clone(&self.plans[class]);
        let value = plan.graph.outputs.get(index).ok_or_else(|| missing("the graph has no such output"))?;
        let mut tensor = None;
        show(&mut self.recorder, &plan, class, sizes, *value, &mut |view| {
            tensor = Some(view.to_tensor());
            Ok(())
        })?;
        tensor.ok_or_else(|| missing("no step has computed it"))
    }
}

/// One of several rows of logits.
fn row_of(rows: &[Vec<f32>], row: usize) -> Result<&Vec<f32>, BackendError> {
    rows.get(row).ok_or_else(|| BackendError::Input(format!("row {row} of {} rows of logits", rows.len())))
}

/// Shows a value of a step.
fn show<R: Recorder>(
    recorder: &mut R,
    plan: &Plan,
    class: usize,
    sizes: StepSizes,
    value: ValueId,
    look: &mut dyn FnMut(TensorView<'_>) -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    let words = stored(recorder.read(class, sizes, value)?, value)?;
    let declared = plan.graph.value(value);
    let data = match declared.dtype {
        DType::U32 => ViewData::U32(&words),
        DType::F32 | DType::State => ViewData::F32(bytemuck::cast_slice(&words)),
    };
    look(TensorView { shape: &declared.shape.resolve(sizes), data })
}

/// Words that a plan stores.
fn stored(words: Option<Cow<'_, [u32]>>, value: ValueId) -> Result<Cow<'_, [u32]>, BackendError> {
    words.ok_or_else(|| not_stored(value))
}

fn wrong(value: impl std::fmt::Display, detail: impl Into<String>) -> BackendError {
    BackendError::Value { value: value.to_string(), detail: detail.into() }
}

fn not_stored(value: ValueId) -> BackendError {
    wrong(value, "the plan does not store it: ask for a tap on it")
}

#[cfg(test)]
mod tests;
