//! Stages 5 and 6: the compiled graph, and how a step runs: all launches in one job of the pool, a barrier between any
//! two; or, with an observer, one job a launch, with the same arithmetic.

use super::compile::{Needs, Program};
use super::kernels::{Kernels, Lanes, PANEL_ROWS, Panel, PanelF32, WideLanes};
use super::memory::{Arena, Val};
use super::ops::activations::RowBuffers;
use super::ops::attention::{Partials, Tiles};
use super::ops::expert_matmul::Slots;
use super::ops::rope::RopeTable;
use super::ops::{Scratch, Step};
use super::pool::Pool;
use super::state::CpuState;
use super::tiles::ActivationTiles;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{DType, Op, StateId, StepSizes, ValueId};
use moe_run_graph::passes::Plan;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Executable, ExecutableInfo, HostTensor, Observer, State, StepInput, StepLimits, StepRun, StepTokens,
    TensorData, TensorView, ValueAccess, ViewData, WeightSource, argmax, best_candidates, deliver_taps,
    not_taken,
};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The executable.
pub struct CpuExecutable {
    /// For steps of one token.
    one: Program,
    /// For all others.
    many: Program,
    info: ExecutableInfo,
    kernels: Kernels,
    pool: Pool,
    arena: Arena,
    activations: ActivationTiles,
    partials: Partials,
    rope: Vec<RopeTable>,
    /// One for each worker, locked once a job.
    scratch: Vec<Mutex<Scratch>>,
    vocab_size: Option<usize>,
    /// The step's rows by sequence.
    runs: Vec<StepRun>,
    /// Sizes of the last step; `None` before the first.
    last: Option<StepSizes>,
    /// The token that the last step chose itself.
    taken: Option<TokenId>,
    /// The launches point into its bytes.
    _weights: Arc<dyn WeightSource>,
}

fn scratch(needs: Needs, one: Needs, max_tokens: usize) -> Scratch {
    let lanes = |n: usize| vec![Lanes([0.0; PANEL_ROWS]); n];
    let wide = |n: usize| vec![WideLanes([0.0; PANEL_ROWS]); n];
    let slots = needs.slots.max(super::ops::RUN_PANELS);
    Scratch {
        panel: Panel::zeroed(),
        wide: PanelF32::zeroed(),
        sums: [lanes(slots), lanes(slots)],
        wide_sums: wide(needs.slots),
        combined: wide(
            (max_tokens * super::ops::matmul::COMBINE_PANELS)
                .max(super::ops::RUN_PANELS)
                .max(needs.wide_elems.div_ceil(PANEL_ROWS)),
        ),
        normed: vec![0.0; needs.row_elems],
        row: RowBuffers::new(needs.row_elems),
        activations: ActivationTiles::new(needs.kinds, one.activation_elems),
        slots: Slots::new(needs.slots, needs.groups),
        chosen: (vec![0; needs.per_tok], vec![0.0; needs.per_tok]),
        attention: Tiles::new(needs.attention),
    }
}

impl CpuExecutable {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub fn new(
        one: Program,
        many: Program,
        info: ExecutableInfo,
        kernels: Kernels,
        pool: Pool,
        weights: Arc<dyn WeightSource>,
    ) -> Result<CpuExecutable, BackendError> {
        let needs = one.needs.max(many.needs);
        let max = many.plan.max_sizes;
        let graph = &many.plan.graph;
        let vocab_size = graph.vocab_size();
        let words = one.arena_words.max(many.arena_words);
        let no_memory = |what: &str, bytes: usize| BackendError::OutOfMemory {
            what: format!("{what} for a context of {} tokens", max.cached),
            wanted_bytes: bytes as u64,
            available_bytes: 0,
            advice: "lower --ctx-size".into(),
        };
        let rope = graph.rope_tables.iter().map(|spec| {
            let bytes = max.cached.saturating_mul(spec.dims).saturating_mul(4);
            RopeTable::try_new(spec.clone(), max.cached)
                .ok_or_else(|| no_memory("the table of RoPE's angles", bytes))
        });
        Ok(CpuExecutable {
            kernels,
            arena: Arena::try_new(words)
                .ok_or_else(|| no_memory("values between launches", words.saturating_mul(4)))?,
            activations: ActivationTiles::new(needs.kinds, many.needs.activation_elems),
            partials: Partials::try_new(needs.attention, max.cached).ok_or_else(|| {
                no_memory("parts of attentions", Partials::bytes(needs.attention, max.cached))
            })?,
            rope: rope.collect::<Result<_, _>>()?,
            scratch: (0..pool.threads()).map(|_| Mutex::new(scratch(needs, one.needs, max.tokens))).collect(),
            vocab_size,
            runs: Vec::with_capacity(max.tokens),
            last: None,
            taken: None,
            _weights: weights,
            one,
            many,
            info,
            pool,
        })
    }

    fn program(&self, tokens: usize) -> &Program {
        if tokens == 1 { &self.one } else { &self.many }
    }

    /// Those logits of a row of the last step that may be chosen from.
    fn choosable_row(&self, row: usize) -> Result<&[f32], BackendError> {
        let logits = self.logits_row(row)?;
        Ok(&logits[..self.choosable(logits.len())])
    }

    /// The logits of a row of the last step, where they lie.
    fn logits_row(&self, row: usize) -> Result<&[f32], BackendError> {
        let rows = self.last.map_or(0, |s| s.logits_rows);
        let program = self.program(self.last.map_or(1, |s| s.tokens));
        let val = program.plan.graph.outputs.first().and_then(|v| program.places[v.index()]);
        match val {
            // SAFETY: no job runs.
            Some(val) if row < rows => Ok(unsafe { self.arena.rows(val, row..row + 1) }),
            _ => Err(BackendError::Input(format!("row {row} of {rows} rows of logits"))),
        }
    }
}

/// A step, held between launches.
struct Held<'a> {
    program: &'a Program,
    arena: &'a Arena,
    state: &'a mut CpuState,
    kernels: Kernels,
    sizes: StepSizes,
}

/// Shows a value where it lies.
fn show<T>(
    program: &Program,
    arena: &Arena,
    value: ValueId,
    sizes: StepSizes,
    look: impl FnOnce(TensorView<'_>) -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let decl = program.plan.graph.value(value);
    let Some(val) = program.places[value.index()] else {
        let detail = "is not stored by this plan: ask for a tap on it".into();
        return Err(BackendError::Value { value: value.to_string(), detail });
    };
    let words = Val { width: 1, ..val };
    // SAFETY: no job runs.
    let data = unsafe { arena.rows(words, 0..decl.shape.elems(sizes)) };
    let data = match decl.dtype {
        DType::U32 => ViewData::U32(bytemuck::cast_slice(data)),
        _ => ViewData::F32(data),
    };
    look(TensorView { shape: &decl.shape.resolve(sizes), data })
}

fn read(
    program: &Program,
    arena: &Arena,
    value: ValueId,
    sizes: StepSizes,
) -> Result<HostTensor, BackendError> {
    show(program, arena, value, sizes, |tensor| Ok(tensor.to_tensor()))
}

impl Held<'_> {
    fn slots(&self, state: StateId, slots: &Range<usize>) -> Result<(), BackendError> {
        let capacity = self.state.slots(state.index());
        if slots.start <= slots.end && slots.end <= capacity {
            return Ok(());
        }
        Err(BackendError::Value {
            value: state.to_string(),
            detail: format!("slots {slots:?} of {capacity}"),
        })
    }

    /// Experts that a router's ids may name.
    fn id_limit(&self, value: ValueId) -> Option<usize> {
        let graph = &self.program.plan.graph;
        let producer = graph.value(value).producer.and_then(|n| graph.node(n))?;
        let Op::Router(attrs) = &producer.op else { return None };
        Some(attrs.num_experts)
    }
}

impl ValueAccess for Held<'_> {
    fn sizes(&self) -> StepSizes {
        self.sizes
    }

    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError> {
        read(self.program, self.arena, value, self.sizes)
    }

    fn show(
        &mut self,
        value: ValueId,
        look: &mut dyn FnMut(TensorView<'_>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        show(self.program, self.arena, value, self.sizes, look)
    }

    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError> {
        let decl = self.program.plan.graph.value(value);
        let refuse = |detail: String| Err(BackendError::Value { value: value.to_string(), detail });
        let Some(val) = self.program.places[value.index()] else {
            return refuse("is not stored by this plan".into());
        };
        let wanted = decl.shape.resolve(self.sizes);
        if tensor.shape != wanted || tensor.data.len() != wanted.iter().product::<usize>() {
            return refuse(format!("shape {:?}, wanted {wanted:?}", tensor.shape));
        }
        let words = Val { width: 1, ..val };
        match (&tensor.data, decl.dtype) {
            (TensorData::F32(data), DType::F32) => {
                // SAFETY: no job runs.
                unsafe { self.arena.rows_mut(words, 0..data.len()) }.copy_from_slice(data);
            }
            (TensorData::U32(data), DType::U32) => {
                if let Some(limit) = self.id_limit(value)
                    && let Some(bad) = data.iter().find(|id| **id as usize >= limit)
                {
                    return refuse(format!("expert {bad} of {limit}"));
                }
                // SAFETY: no job runs.
                unsafe { self.arena.ids_mut(words, 0..data.len()) }.copy_from_slice(data);
            }
            _ => return refuse(format!("wanted {:?}", decl.dtype)),
        }
        Ok(())
    }

    fn read_state(&mut self, state: StateId, slots: Range<usize>) -> Result<Vec<f32>, BackendError> {
        self.slots(state, &slots)?;
        Ok(self.state.read(self.kernels, state.index(), slots))
    }

    fn write_state(&mut self, state: StateId, first_slot: usize, rows: &[f32]) -> Result<(), BackendError> {
        let width = self.program.plan.graph.state(state).row_elems();
        self.slots(state, &(first_slot..first_slot + rows.len() / width))?;
        self.state.write(self.kernels, state.index(), first_slot, rows);
        Ok(())
    }
}

impl Executable for CpuExecutable {
    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn plan(&self, tokens: usize) -> &Plan {
        &self.program(tokens).plan
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        self.new_pool(self.many.plan.max_sizes.cached, 1)
    }

    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(CpuState::new(&self.many.plan.graph.states, self.info.kv_type, tokens, sequences)?))
    }

    fn step(
        &mut self,
        state: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let Some(state) = state.as_any_mut().downcast_mut::<CpuState>() else {
            return Err(BackendError::Input("the state belongs to another backend".into()));
        };
        input.check(&StepLimits {
            sizes: self.many.plan.max_sizes,
            vocab_size: self.vocab_size,
            slots: state.capacity_tokens(),
            places: state.max_sequences(),
        })?;
        let chosen;
        let tokens: &[TokenId] = match input.tokens {
            StepTokens::Host(tokens) => {
                self.taken = None;
                tokens
            }
            StepTokens::Argmax { row } => {
                chosen = [self.argmax(row)?];
                self.taken = Some(chosen[0]);
                &chosen
            }
        };
        let sizes = input.sizes();
        self.rope.iter_mut().for_each(|table| table.fill(sizes.cached));
        self.last = Some(sizes);
        let program = if sizes.tokens == 1 { &self.one } else { &self.many };
        let inputs = program.plan.graph.inputs;
        let given: [(ValueId, &[u32]); 5] = [
            (inputs.tokens, as_words(tokens)),
            (inputs.positions, input.positions),
            (inputs.sequence, input.sequence),
            (inputs.kv_slots, input.kv_slots),
            (inputs.logits_rows, input.logits_rows),
        ];
        for (value, ids) in given {
            if let Some(val) = program.places[value.index()] {
                // SAFETY: no job runs.
                unsafe { self.arena.ids_mut(val, 0..ids.len()) }.copy_from_slice(ids);
            }
        }
        self.runs.clear();
        self.runs.extend(input.runs());
        macro_rules! step {
            ($state:expr) => {
                Step {
                    kernels: self.kernels,
                    sizes,
                    positions: input.positions,
                    slots: input.kv_slots,
                    sequences: input.sequences,
                    runs: &self.runs,
                    arena: &self.arena,
                    state: $state,
                    activations: &self.activations,
                    rope: &self.rope,
                    partials: &self.partials,
                }
            };
        }
        let Some(observer) = observer else {
            let step = step!(state);
            let scratch = &self.scratch;
            self.pool.run(&|worker| {
                let mut scratch = scratch[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
                for (i, work) in program.work.iter().enumerate() {
                    if i > 0 {
                        worker.barrier();
                    }
                    work.run(&step, worker, &mut scratch);
                }
            });
            return Ok(());
        };
        for (launch, work) in program.plan.launches.iter().zip(&program.work) {
            let (kernels, arena) = (self.kernels, &self.arena);
            let mut held = Held { program, arena, state, kernels, sizes };
            observer.before_launch(&program.plan, launch, &mut held)?;
            let start = Instant::now();
            let step = step!(held.state);
            let scratch = &self.scratch;
            self.pool.run(&|worker| {
                let mut scratch = scratch[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
                work.run(&step, worker, &mut scratch);
            });
            let elapsed = start.elapsed();
            observer.after_launch(&program.plan, launch, elapsed, &mut held)?;
            deliver_taps(&program.plan, launch, input, &mut held, observer)?;
        }
        Ok(())
    }

    fn logits(&mut self, row: usize, out: &mut Vec<f32>) -> Result<(), BackendError> {
        let logits = self.logits_row(row)?;
        out.clear();
        out.extend_from_slice(logits);
        Ok(())
    }

    fn argmax(&mut self, row: usize) -> Result<TokenId, BackendError> {
        argmax(self.choosable_row(row)?)
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        self.taken.ok_or_else(not_taken)
    }

    fn candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        best_candidates(self.choosable_row(row)?, count, out)
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let missing = || BackendError::Value {
            value: format!("output {index}"),
            detail: "no step has computed it".into(),
        };
        let sizes = self.last.ok_or_else(missing)?;
        let program = self.program(sizes.tokens);
        let value = program.plan.graph.outputs.get(index).copied().ok_or_else(missing)?;
        read(program, &self.arena, value, sizes)
    }
}

/// Ids as plain words.
fn as_words(tokens: &[TokenId]) -> &[u32] {
    const { assert!(size_of::<TokenId>() == size_of::<u32>() && align_of::<TokenId>() == align_of::<u32>()) };
    // SAFETY: `TokenId` is one u32 of the same size and alignment, checked above.
    unsafe { std::slice::from_raw_parts(tokens.as_ptr().cast(), tokens.len()) }
}
