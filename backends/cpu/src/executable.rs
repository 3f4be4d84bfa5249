//! Stages 5 and 6: the compiled graph, and how its launches run: those of a step in one job of the pool, a barrier between any
//! two; or, with an observer, one job a launch, with the same arithmetic. The rest of a step is the [`Runner`]'s.
//!
//! [`Runner`]: moe_run_runtime::runner::Runner

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
use moe_run_graph::ir::{StateId, StepSizes, ValueId};
use moe_run_graph::passes::Plan;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{ExecutableInfo, PoolSize, StepRun, WeightSource};
use moe_run_runtime::runner::{self, Recorder};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A compiled graph: a class of steps of one token, and one of all others.
pub struct CpuRecorder {
    programs: [Program; 2],
    info: ExecutableInfo,
    kernels: Kernels,
    pool: Pool,
    arena: Arena,
    activations: ActivationTiles,
    partials: Partials,
    rope: Vec<RopeTable>,
    /// One for each worker, locked once a job.
    scratch: Vec<Mutex<Scratch>>,
    /// The step's rows by sequence.
    runs: Vec<StepRun>,
    /// The launches point into its bytes.
    _weights: Arc<dyn WeightSource>,
}

fn scratch(needs: Needs, one: Needs, max_tokens: usize) -> Scratch {
    let lanes = |n: usize| vec![Lanes([0.0; PANEL_ROWS]); n];
    let wide = |n: usize| vec![WideLanes([0.0; PANEL_ROWS]); n];
    let slots = needs.slots.max(super::ops::RUN_PANELS * super::kernels::TILE_TOKENS);
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

impl CpuRecorder {
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
    ) -> Result<CpuRecorder, BackendError> {
        let needs = one.needs.max(many.needs);
        let max = many.plan.max_sizes;
        let graph = &many.plan.graph;
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
        Ok(CpuRecorder {
            kernels,
            arena: Arena::try_new(words)
                .ok_or_else(|| no_memory("values between launches", words.saturating_mul(4)))?,
            activations: ActivationTiles::new(needs.kinds, many.needs.activation_elems),
            partials: Partials::try_new(needs.attention, max.cached).ok_or_else(|| {
                no_memory("parts of attentions", Partials::bytes(needs.attention, max.cached))
            })?,
            rope: rope.collect::<Result<_, _>>()?,
            scratch: (0..pool.threads()).map(|_| Mutex::new(scratch(needs, one.needs, max.tokens))).collect(),
            runs: Vec::with_capacity(max.tokens),
            _weights: weights,
            programs: [one, many],
            info,
            pool,
        })
    }

    /// The plans, by class.
    pub fn plans(&self) -> Vec<Arc<Plan>> {
        self.programs.iter().map(|program| Arc::clone(&program.plan)).collect()
    }

    /// Where a value's words are in a step of these sizes: rows of one word.
    fn place(&self, class: usize, sizes: StepSizes, value: ValueId) -> Option<(Val, Range<usize>)> {
        let program = &self.programs[class];
        let val = program.places[value.index()]?;
        Some((Val { width: 1, ..val }, 0..program.plan.graph.value(value).shape.elems(sizes)))
    }

    /// Runs launches in one job of the pool.
    fn launches(&mut self, step: &runner::Step<'_>, state: &CpuState, launches: Range<usize>) {
        let now = Step {
            kernels: self.kernels,
            sizes: step.sizes,
            positions: step.input.positions,
            sequence: step.input.sequence,
            sequences: step.input.sequences,
            runs: &self.runs,
            arena: &self.arena,
            state,
            activations: &self.activations,
            rope: &self.rope,
            partials: &self.partials,
        };
        let (work, scratch) = (&self.programs[step.class].work[launches], &self.scratch);
        self.pool.run(&|worker| {
            let mut scratch = scratch[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
            for (i, work) in work.iter().enumerate() {
                if i > 0 {
                    worker.barrier();
                }
                work.run(&now, worker, &mut scratch);
            }
        });
    }
}

impl Recorder for CpuRecorder {
    type State = CpuState;

    const BLOCK_TABLES: bool = true;

    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn new_state(&self) -> Result<CpuState, BackendError> {
        self.new_pool(self.programs[1].plan.max_sizes.cached, 1)
    }

    fn new_pool(&self, tokens: usize, sequences: usize) -> Result<CpuState, BackendError> {
        let size = PoolSize { tokens, sequences, micro_batch: self.info.micro_batch };
        CpuState::new(&self.programs[1].plan.graph.states, self.info.kv_type, size)
    }

    fn fits(&self, state: &CpuState) -> bool {
        state.is_of(&self.programs[1].plan.graph.states, self.info.kv_type)
    }

    fn begin(&mut self, step: &runner::Step<'_>) -> Result<(), BackendError> {
        self.rope.iter_mut().for_each(|table| table.fill(step.sizes.cached));
        for (value, words) in step.inputs() {
            if let (Some(words), Some(val)) = (words, self.programs[step.class].places[value.index()]) {
                // SAFETY: no job runs.
                unsafe { self.arena.ids_mut(val, 0..words.len()) }.copy_from_slice(words);
            }
        }
        self.runs.clear();
        self.runs.extend(step.input.runs());
        Ok(())
    }

    fn run(&mut self, step: &runner::Step<'_>, state: &mut CpuState) -> Result<(), BackendError> {
        self.launches(step, state, 0..step.plan.launches.len());
        Ok(())
    }

    fn run_launch(
        &mut self,
        step: &runner::Step<'_>,
        launch: usize,
        state: &mut CpuState,
    ) -> Result<Duration, BackendError> {
        let start = Instant::now();
        self.launches(step, state, launch..launch + 1);
        Ok(start.elapsed())
    }

    fn read(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
    ) -> Result<Option<Cow<'_, [u32]>>, BackendError> {
        let place = self.place(class, sizes, value);
        // SAFETY: no job runs.
        let words = place.map(|(val, words)| unsafe { self.arena.rows(val, words) });
        Ok(words.map(|words| Cow::Borrowed(bytemuck::cast_slice(words))))
    }

    fn write(
        &mut self,
        class: usize,
        sizes: StepSizes,
        value: ValueId,
        words: &[u32],
    ) -> Result<bool, BackendError> {
        let Some((val, all)) = self.place(class, sizes, value) else { return Ok(false) };
        // SAFETY: no job runs.
        unsafe { self.arena.ids_mut(val, all) }.copy_from_slice(words);
        Ok(true)
    }

    fn read_state(
        &mut self,
        state: &CpuState,
        id: StateId,
        slots: Range<usize>,
    ) -> Result<Vec<f32>, BackendError> {
        Ok(state.read(self.kernels, id.index(), slots))
    }

    fn write_state(
        &mut self,
        state: &mut CpuState,
        id: StateId,
        first_slot: usize,
        rows: &[f32],
    ) -> Result<(), BackendError> {
        state.write(self.kernels, id.index(), first_slot, rows);
        Ok(())
    }
}
