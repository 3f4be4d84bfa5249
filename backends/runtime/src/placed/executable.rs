//! A step through all parts.

use super::experts::{ExpertObserver, Experts};
use super::observer::PartObserver;
use super::state::{PlacedState, Places};
use super::{NAME, Part};
use crate::choice::{argmax, best_candidates, not_taken};
use crate::error::BackendError;
use crate::executable::{
    Executable, ExecutableInfo, HostTensor, Observer, Rings, SequenceStates, State, StepInput, StepLimits,
    StepSequence, StepTokens, blocks_in_order,
};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, StateId};
use moe_run_graph::passes::{Crossing, Plan, Segment, crossings, merge_plans};

/// The executable of a segment.
struct OfPart {
    executable: Box<dyn Executable>,
    /// The ids in the whole graph of its states.
    states: Vec<StateId>,
    label: String,
}

/// The plan of steps up to a number of tokens.
struct Class {
    plan: Plan,
    /// Launches in front of each part's.
    bases: Vec<usize>,
}

/// The executables of all parts.
pub(super) struct PlacedExecutable {
    parts: Vec<OfPart>,
    /// Of layers whose experts several devices share.
    experts: Option<Experts>,
    info: ExecutableInfo,
    /// By ascending tokens.
    classes: Vec<Class>,
    crossings: Vec<Crossing>,
    /// What crosses in the step that runs, in the order of `crossings`.
    values: Vec<Option<HostTensor>>,
    /// Of each output of the whole graph: the part that has it, and which of its outputs it is.
    outputs: Vec<(usize, usize)>,
    /// The token that the last step took from the step before.
    taken: Option<TokenId>,
    /// Rows of logits of the last step of several sequences, run one after another; `None` behind any other step.
    each: Option<Vec<Vec<f32>>>,
}

impl PlacedExecutable {
    /// Puts the executables of the segments together.
    ///
    /// # Errors
    /// [`BackendError::Input`] where parts round otherwise than each other.
    pub fn new(
        graph: &Graph,
        parts: &[Part],
        segments: &[Segment],
        executables: Vec<Box<dyn Executable>>,
        experts: Option<Experts>,
    ) -> Result<PlacedExecutable, BackendError> {
        let info = info(parts, &executables, experts.as_ref())?;
        let classes = classes(graph, &executables, info.micro_batch);
        let outputs = graph.outputs.iter().filter_map(|value| {
            let of = |segment: &Segment| segment.graph.outputs.iter().position(|v| v == value);
            segments.iter().enumerate().find_map(|(i, segment)| of(segment).map(|at| (i, at)))
        });
        let crossings = crossings(segments);
        let own = executables.into_iter().zip(segments).zip(parts);
        Ok(PlacedExecutable {
            outputs: outputs.collect(),
            values: vec![None; crossings.len()],
            parts: own
                .map(|((executable, segment), part)| OfPart {
                    executable,
                    states: segment.states.clone(),
                    label: part.label.clone(),
                })
                .collect(),
            experts,
            info,
            classes,
            crossings,
            taken: None,
            each: None,
        })
    }

    /// The rings of all parts, by state of the whole graph.
    fn rings(&self, states: &[Box<dyn State>]) -> Rings {
        let count = self.parts.iter().map(|part| part.states.len()).sum();
        let mut rings = vec![None; count];
        for (part, state) in self.parts.iter().zip(states) {
            for (id, ring) in part.states.iter().zip(state.rings()) {
                if let Some(of_whole) = rings.get_mut(id.index()) {
                    *of_whole = *ring;
                }
            }
        }
        rings.into()
    }

    fn class(&self, tokens: usize) -> usize {
        let fits = self.classes.iter().position(|class| class.plan.max_sizes.tokens >= tokens);
        fits.unwrap_or(self.classes.len() - 1)
    }

    /// The part that has the logits.
    fn head(&mut self) -> &mut dyn Executable {
        let at = self.outputs.first().map_or(self.parts.len() - 1, |(part, _)| *part);
        self.parts[at].executable.as_mut()
    }

    /// A step through all parts, each in its own state.
    fn through(
        &mut self,
        states: &mut [Box<dyn State>],
        input: &StepInput<'_>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let chosen = match input.tokens {
            StepTokens::Host(_) => None,
            StepTokens::Argmax { row } => Some(self.head().argmax(row)?),
        };
        let tokens = if chosen.is_some() { StepTokens::Host(chosen.as_slice()) } else { input.tokens };
        let input = &StepInput { tokens, ..*input };
        self.taken = chosen;
        self.values.fill(None);
        let class = self.class(input.len());
        for (i, state) in states.iter_mut().enumerate() {
            self.give(i)?;
            let (part, class) = (&mut self.parts[i], &self.classes[class]);
            let mut of_part = observer.as_mut().map(|observer| PartObserver {
                observer: &mut **observer,
                plan: &class.plan,
                base: class.bases[i],
                states: &part.states,
                label: &part.label,
            });
            let observer = of_part.as_mut().map(|observer| observer as &mut dyn Observer);
            match &mut self.experts {
                None => part.executable.step(state.as_mut(), input, observer)?,
                Some(experts) => {
                    let mut observer = ExpertObserver { experts, observer, input };
                    part.executable.step(state.as_mut(), input, Some(&mut observer))?;
                }
            }
            for (crossing, value) in self.crossings.iter().zip(&mut self.values) {
                if crossing.from == i {
                    *value = Some(part.executable.output(crossing.output)?);
                }
            }
        }
        Ok(())
    }

    /// Hands a part what the parts before have made for it.
    fn give(&mut self, part: usize) -> Result<(), BackendError> {
        for (crossing, value) in self.crossings.iter().zip(&mut self.values) {
            if !crossing.to.contains(&part) {
                continue;
            }
            let is_last = crossing.to.last() == Some(&part);
            let tensor = if is_last { value.take() } else { value.clone() };
            let tensor = tensor.ok_or_else(|| BackendError::Value {
                value: crossing.value.to_string(),
                detail: "a part before has not made it".into(),
            })?;
            self.parts[part].executable.give(crossing.value, tensor)?;
        }
        Ok(())
    }

    /// A step of several sequences, one after another, each as it is alone; their rows of logits are kept.
    fn one_by_one(
        &mut self,
        sequences: &mut [Vec<Box<dyn State>>],
        slots: usize,
        input: &StepInput<'_>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let plan = self.plan(input.len());
        let (sizes, vocab_size) = (plan.max_sizes, plan.graph.vocab_size());
        input.check(&StepLimits { sizes, vocab_size, slots, places: sequences.len() })?;
        let StepTokens::Host(tokens) = input.tokens else {
            return Err(BackendError::Input("a token from the device, for a pool of sequences".into()));
        };
        let mut logits = vec![Vec::new(); input.logits_rows.len()];
        for run in input.runs() {
            let states = &mut sequences[input.sequences[run.sequence].place as usize];
            let wanted = input.logits_rows.iter().map(|row| *row as usize).enumerate();
            let wanted: Vec<(usize, usize)> = wanted
                .filter(|(_, row)| run.rows.contains(row))
                .map(|(i, row)| (i, row - run.rows.start))
                .collect();
            let logits_rows: Vec<u32> = wanted.iter().map(|(_, row)| *row as u32).collect();
            let positions = &input.positions[run.rows.clone()];
            let capacity = states.iter().map(|state| state.capacity_tokens()).min().unwrap_or(0);
            let blocks = blocks_in_order(capacity);
            let alone = StepInput {
                tokens: StepTokens::Host(&tokens[run.rows.clone()]),
                positions,
                sequence: &vec![0; run.rows.len()],
                kv_slots: positions,
                sequences: &[StepSequence { blocks: &blocks, place: 0 }],
                logits_rows: &logits_rows,
            };
            let observer: Option<&mut dyn Observer> = match observer.as_mut() {
                Some(observer) => Some(&mut **observer),
                None => None,
            };
            self.through(states, &alone, observer)?;
            for (at, (i, _)) in wanted.iter().enumerate() {
                self.head().logits(at, &mut logits[*i])?;
            }
        }
        self.each = Some(logits);
        Ok(())
    }

    /// One of the rows of several sequences.
    fn row_of_each(&self, row: usize) -> Result<Option<&Vec<f32>>, BackendError> {
        let Some(rows) = &self.each else { return Ok(None) };
        let missing = || BackendError::Input(format!("row {row} of {} rows of logits", rows.len()));
        rows.get(row).map(Some).ok_or_else(missing)
    }
}

impl Executable for PlacedExecutable {
    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn plan(&self, tokens: usize) -> &Plan {
        &self.classes[self.class(tokens)].plan
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        let states = self.parts.iter().map(|part| part.executable.new_state());
        let states = states.collect::<Result<Vec<_>, _>>()?;
        let capacity_tokens = states.iter().map(|state| state.capacity_tokens()).min().unwrap_or(0);
        let rings = self.rings(&states);
        Ok(Box::new(PlacedState { places: Places::Together(states), capacity_tokens, rings }))
    }

    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<Box<dyn State>, BackendError> {
        if self.runs_together() {
            let states = self.parts.iter().map(|part| part.executable.new_pool(tokens, sequences));
            let states = states.collect::<Result<Vec<_>, _>>()?;
            let rings = self.rings(&states);
            return Ok(Box::new(PlacedState {
                places: Places::Together(states),
                capacity_tokens: tokens,
                rings,
            }));
        }
        let of_sequence = || self.parts.iter().map(|part| part.executable.new_state()).collect();
        let states: Vec<Vec<_>> = (0..sequences).map(|_| of_sequence()).collect::<Result<_, _>>()?;
        let rings = self.rings(states.first().map_or(&[], Vec::as_slice));
        Ok(Box::new(PlacedState { places: Places::Each(states), capacity_tokens: tokens, rings }))
    }

    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        self.each = None;
        let Some(state) = state.as_any_mut().downcast_mut::<PlacedState>() else {
            return Err(BackendError::Input("the state belongs to another backend".into()));
        };
        match &mut state.places {
            Places::Together(states) if states.len() == self.parts.len() => {
                self.through(states, input, observer)
            }
            Places::Each(sequences) if sequences.iter().all(|states| states.len() == self.parts.len()) => {
                self.one_by_one(sequences, state.capacity_tokens, input, observer)
            }
            Places::Together(_) | Places::Each(_) => {
                Err(BackendError::Input("the state belongs to another placement".into()))
            }
        }
    }

    fn runs_together(&self) -> bool {
        self.parts.iter().all(|part| part.executable.runs_together())
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        match self.row_of_each(row)? {
            Some(of_each) => out.clone_from(of_each),
            None => self.head().logits(row, out)?,
        }
        Ok(())
    }

    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        match self.row_of_each(row)? {
            Some(of_each) => argmax(&of_each[..self.choosable(of_each.len())]),
            None => self.head().argmax(row),
        }
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        self.taken.ok_or_else(not_taken)
    }

    fn expect_candidates(&mut self, count: usize) {
        self.head().expect_candidates(count);
    }

    fn candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        match self.row_of_each(row)? {
            Some(of_each) => best_candidates(&of_each[..self.choosable(of_each.len())], count, out),
            None => self.head().candidates(row, count, out),
        }
    }

    fn wait(&mut self) -> Result<(), BackendError> {
        self.parts.iter_mut().try_for_each(|part| part.executable.wait())
    }

    fn read_sequence(
        &mut self,
        state: &mut dyn State,
        place: usize,
        len_tokens: usize,
    ) -> Result<SequenceStates, BackendError> {
        let mut rows = SequenceStates::new();
        let Some(state) = state.as_any_mut().downcast_mut::<PlacedState>() else { return Ok(rows) };
        let Places::Together(states) = &mut state.places else { return Ok(rows) };
        for (part, state) in self.parts.iter_mut().zip(states) {
            let own = part.executable.read_sequence(state.as_mut(), place, len_tokens)?;
            rows.extend(own.into_iter().map(|(id, row)| (part.states[id.index()], row)));
        }
        Ok(rows)
    }

    fn restore_sequence(
        &mut self,
        state: &mut dyn State,
        place: usize,
        len_tokens: usize,
        kept: &SequenceStates,
    ) -> Result<(), BackendError> {
        let Some(state) = state.as_any_mut().downcast_mut::<PlacedState>() else {
            return Err(BackendError::Input("the state belongs to another backend".into()));
        };
        let Places::Together(states) = &mut state.places else {
            return Err(BackendError::Input("no states were kept".into()));
        };
        for (part, state) in self.parts.iter_mut().zip(states) {
            let own = |id: &StateId| part.states.iter().position(|state| state == id);
            let of_part: SequenceStates = kept
                .iter()
                .filter_map(|(id, row)| own(id).map(|own| (StateId(own as u32), row.clone())))
                .collect();
            if !of_part.is_empty() {
                part.executable.restore_sequence(state.as_mut(), place, len_tokens, &of_part)?;
            }
        }
        Ok(())
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let missing = || BackendError::Value {
            value: format!("output {index}"),
            detail: "the graph has no such output".into(),
        };
        let (part, output) = *self.outputs.get(index).ok_or_else(missing)?;
        self.parts[part].executable.output(output)
    }
}

/// What all parts together are.
fn info(
    parts: &[Part],
    executables: &[Box<dyn Executable>],
    experts: Option<&Experts>,
) -> Result<ExecutableInfo, BackendError> {
    let infos: Vec<&ExecutableInfo> = executables.iter().map(|e| e.info()).collect();
    let first = infos.first().ok_or_else(|| BackendError::Input("no part".into()))?;
    for (part, info) in parts.iter().zip(&infos) {
        let arithmetic = |i: &ExecutableInfo| (i.activations, i.q8_super_block, i.kv_type);
        if arithmetic(info) != arithmetic(first) {
            return Err(BackendError::Input(format!(
                "{} takes activations {} (block {:?}) and KV cache {}, {} takes {} ({:?}) and {}: wanted the same on all devices; \
                 try --activations f32",
                part.label,
                info.activations,
                info.q8_super_block,
                info.kv_type,
                parts[0].label,
                first.activations,
                first.q8_super_block,
                first.kv_type
            )));
        }
    }
    let of_experts = experts.iter().flat_map(|e| e.devices.iter().map(|device| device.executable().info()));
    let of_experts: Vec<&ExecutableInfo> = of_experts.collect();
    let is_one = infos.iter().chain(&of_experts).all(|info| info.backend == first.backend);
    let device = |(part, info): (&Part, &&ExecutableInfo)| {
        format!("{} ({}): layers {}-{}", part.label, info.device, part.layers.start, part.layers.end - 1)
    };
    Ok(ExecutableInfo {
        backend: if is_one { first.backend } else { NAME },
        device: parts
            .iter()
            .zip(&infos)
            .map(device)
            .chain(experts.map(Experts::text))
            .collect::<Vec<_>>()
            .join(" + "),
        activations: first.activations,
        q8_super_block: first.q8_super_block,
        kv_type: first.kv_type,
        threads: infos.iter().map(|info| info.threads).max().unwrap_or(1),
        micro_batch: infos.iter().map(|info| info.micro_batch).min().unwrap_or(1),
        weight_bytes: infos.iter().chain(&of_experts).map(|info| info.weight_bytes).sum(),
    })
}

/// The whole plans: one wherever any part has another plan.
fn classes(graph: &Graph, executables: &[Box<dyn Executable>], micro_batch: usize) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    let mut tokens = 0;
    while tokens < micro_batch || classes.is_empty() {
        let plans: Vec<&Plan> = executables.iter().map(|e| e.plan(tokens + 1)).collect();
        let mut base = 0;
        let bases = plans.iter().map(|plan| {
            base += plan.launches.len();
            base - plan.launches.len()
        });
        let bases = bases.collect();
        let mut plan = merge_plans(graph, &plans);
        plan.max_sizes.tokens = plan.max_sizes.tokens.min(micro_batch).max(tokens + 1);
        tokens = plan.max_sizes.tokens;
        classes.push(Class { plan, bases });
    }
    classes
}
