//! Stage 5, wgpu: Plan → dispatches, still without a device.
//!
//! Input: a plan, where each value lies, which weights exist in which parts. Output: for each launch the dispatches that
//! compute it, with parameters and grids as functions of the step's sizes. The ops' files say how each node is run.

use super::NAME;
use super::layout::RowLayout;
use super::params::Param;
use super::shader::{Features, Input, Variant};
use super::weight_map::{Tensor, WeightMap};
use moe_run_graph::ir::{Dim, Node, RopeTableId, Shape, StateId, StepSizes, ValueId, WeightId, WeightSlice};
use moe_run_graph::passes::Plan;
use moe_run_graph::quant::{ActProfile, ActivationPrecision, Format};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{KvType, PoolSize};
use std::collections::HashMap;

/// Stands for "there is none" in a parameter.
pub(super) const NONE: u32 = u32::MAX;

/// Workgroups along one axis of a dispatch, at most (WebGPU's default limit).
pub(super) const MAX_GROUPS: u32 = 65_535;

/// The most parts that the attention of one head splits the cache into.
pub(super) const MAX_SPLITS: usize = 32;

/// Up to so many rows a matmul reads its weights anew for each; beyond it works on tiles.
pub(super) const FEW_ROWS: usize = 8;

/// An axis that rows lie along, and how many rows each of its entries holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows {
    pub axis: Axis,
    pub each: u32,
}

/// What a value's first dimension is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    Fixed,
    Tokens,
    LogitsRows,
}

impl Rows {
    /// All axes but the last.
    pub fn of(shape: &Shape) -> Rows {
        let mut rows = Rows { axis: Axis::Fixed, each: 1 };
        for dim in &shape.0[..shape.0.len().saturating_sub(1)] {
            match dim {
                Dim::Fixed(n) => rows.each *= *n as u32,
                Dim::Tokens => rows.axis = Axis::Tokens,
                Dim::LogitsRows => rows.axis = Axis::LogitsRows,
                // Only recomputed attention values have this axis; their ops do not ask for rows.
                Dim::Cached => {}
            }
        }
        rows
    }

    /// The axis as `common/arena.wgsl` numbers it.
    pub fn code(self) -> u32 {
        match self.axis {
            Axis::Fixed => 0,
            Axis::Tokens => 1,
            Axis::LogitsRows => 2,
        }
    }

    /// The number of rows in a step.
    pub fn count(self, sizes: StepSizes) -> usize {
        self.each as usize
            * match self.axis {
                Axis::Fixed => 1,
                Axis::Tokens => sizes.tokens,
                Axis::LogitsRows => sizes.logits_rows,
            }
    }
}

/// A number of workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Fixed(u32),
    /// ⌈rows · times / over⌉.
    Rows {
        rows: Rows,
        times: u32,
        over: u32,
    },
    /// ⌈rows / over⌉ + more: the most tiles that rows fall into when each of `more` groups begins a tile of its own.
    Tiles {
        rows: Rows,
        over: u32,
        more: u32,
    },
    /// ⌈S / over⌉.
    Cached {
        over: u32,
    },
    /// The parts of the cache.
    Splits,
}

/// Where the workgroups go that do not fit into x, in shaders that look for them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spill {
    /// Nowhere: too many are refused when they are dispatched.
    No,
    Y,
    Z,
}

/// The workgroups of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub x: Extent,
    pub y: Extent,
    pub z: Extent,
    pub spill: Spill,
}

impl Grid {
    pub fn new(x: Extent, y: Extent, z: Extent) -> Grid {
        Grid { x, y, z, spill: Spill::No }
    }

    /// The same, for a shader that finds what does not fit into x in z.
    pub fn spilling(self) -> Grid {
        Grid { spill: Spill::Z, ..self }
    }

    /// One lane for each of `rows · width` elements.
    pub fn elements(rows: Rows, width: u32, lanes: u32) -> Grid {
        let x = Extent::Rows { rows, times: width, over: lanes };
        Grid { x, y: Extent::Fixed(1), z: Extent::Fixed(1), spill: Spill::Y }
    }

    /// The workgroups in a step.
    pub fn resolve(&self, sizes: StepSizes, splits: u32) -> [u32; 3] {
        let count = |extent: Extent| match extent {
            Extent::Fixed(n) => n,
            Extent::Rows { rows, times, over } => {
                (rows.count(sizes) as u64 * u64::from(times)).div_ceil(u64::from(over)) as u32
            }
            Extent::Tiles { rows, over, more } => (rows.count(sizes) as u32).div_ceil(over) + more,
            Extent::Cached { over } => (sizes.cached as u32).div_ceil(over),
            Extent::Splits => splits,
        };
        let (x, y, z) = (count(self.x), count(self.y), count(self.z));
        let (most, more) = (MAX_GROUPS, x.div_ceil(MAX_GROUPS));
        match self.spill {
            _ if x <= MAX_GROUPS => [x, y, z],
            Spill::No => [x, y, z],
            Spill::Y => [most, y * more, z],
            Spill::Z => [most, y, z * more],
        }
    }
}

/// How a dispatch binds the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum StateBinding {
    None,
    Write(StateId),
    /// Read and written.
    Update(Vec<StateId>),
    Read(Vec<StateId>),
}

/// One dispatch.
#[derive(Debug, Clone)]
pub(super) struct Dispatch {
    pub variant: Variant,
    pub params: Vec<(&'static str, Param)>,
    /// Tensor and part behind each weight binding.
    pub weights: Vec<(WeightId, usize)>,
    pub state: StateBinding,
    pub grid: Grid,
    /// Only in steps whose attention is split.
    pub when_split: bool,
}

/// Where everything lies in the arena, in words.
pub(super) struct Places {
    /// Boundary inputs.
    pub inputs: HashMap<ValueId, u32>,
    /// cos and sin of the step's positions.
    pub rope: HashMap<RopeTableId, u32>,
    /// The plan's values begin here.
    pub values_at: u32,
    /// Launches' own scratch begins here.
    pub scratch_at: u32,
}

/// Collects the dispatches of a plan.
pub(super) struct Emitter<'a> {
    pub plan: &'a Plan,
    pub places: &'a Places,
    pub tensors: &'a WeightMap,
    pub profile: ActProfile,
    pub kv_type: KvType,
    /// What the states are made for.
    pub states: PoolSize,
    pub features: Features,
    pub dispatches: Vec<Dispatch>,
    scratch_words: u32,
    /// The largest scratch of any launch.
    pub max_scratch_words: u32,
}

impl<'a> Emitter<'a> {
    pub fn new(
        plan: &'a Plan,
        places: &'a Places,
        tensors: &'a WeightMap,
        profile: ActProfile,
        (kv_type, states): (KvType, PoolSize),
        features: Features,
    ) -> Emitter<'a> {
        Emitter {
            plan,
            places,
            tensors,
            profile,
            kv_type,
            states,
            features,
            dispatches: Vec::new(),
            scratch_words: 0,
            max_scratch_words: 0,
        }
    }

    /// Begins a launch: its scratch is free again.
    pub fn begin_launch(&mut self) {
        self.scratch_words = 0;
    }

    /// Words of scratch until the launch ends.
    pub fn scratch(&mut self, words: usize) -> u32 {
        let at = self.places.scratch_at + self.scratch_words;
        self.scratch_words += words.next_multiple_of(64) as u32;
        self.max_scratch_words = self.max_scratch_words.max(self.scratch_words);
        at
    }

    /// A value's place, if it has one.
    pub fn stored(&self, value: ValueId) -> Option<u32> {
        if let Some(at) = self.places.inputs.get(&value) {
            return Some(*at);
        }
        self.plan.memory.slot(value).map(|s| self.places.values_at + (s.offset_bytes / 4) as u32)
    }

    /// A value's place; every value that crosses a launch has one.
    pub fn at(&self, value: ValueId) -> Result<u32, BackendError> {
        self.stored(value).ok_or_else(|| BackendError::Value {
            value: value.to_string(),
            detail: "has no buffer in the plan, though a launch reads it".into(),
        })
    }

    /// The place of a node's output: its buffer, or scratch where nobody reads it.
    pub fn output(&mut self, value: ValueId) -> u32 {
        if let Some(at) = self.stored(value) {
            return at;
        }
        let words = self.plan.graph.value(value).shape.elems(self.plan.max_sizes);
        self.scratch(words)
    }

    /// A value's shape.
    pub fn shape(&self, value: ValueId) -> &'a Shape {
        &self.plan.graph.value(value).shape
    }

    /// The last axis of a value.
    pub fn width(&self, node: &Node, value: ValueId) -> Result<u32, BackendError> {
        let width = self.shape(value).width();
        width
            .map(|w| w as u32)
            .ok_or_else(|| self.unsupported(node, format!("{} has no fixed last axis", self.shape(value))))
    }

    /// A vector's place among the small weights; NONE where there is no vector.
    pub fn small(&self, id: Option<WeightId>) -> Result<u32, BackendError> {
        let Some(id) = id else { return Ok(NONE) };
        self.tensors.small_at.get(&id).copied().ok_or_else(|| BackendError::Value {
            value: self.plan.graph.weight(id).name.clone(),
            detail: "is read as a vector, and not laid out as one".into(),
        })
    }

    /// The state behind a value.
    pub fn state(&self, node: &Node, value: ValueId) -> Result<StateId, BackendError> {
        let state = self.plan.graph.value(value).state;
        state.ok_or_else(|| self.unsupported(node, format!("{value} is no state")))
    }

    /// Rows of a state: position p is in row p modulo so many.
    pub fn state_rows(&self, state: StateId) -> u32 {
        self.states.rows(self.plan.graph.state(state)) as u32
    }

    /// How many pairs a RoPE table turns, and where the step's angles lie.
    pub fn angles(&self, node: &Node, table: RopeTableId) -> Result<(u32, u32), BackendError> {
        let spec = self.plan.graph.rope_tables.get(table.index());
        match (spec, self.places.rope.get(&table)) {
            (Some(spec), Some(at)) => Ok((spec.dims as u32 / 2, *at)),
            _ => Err(self.unsupported(node, format!("no RoPE table {table}"))),
        }
    }

    /// Why a node cannot be run.
    pub fn unsupported(&self, node: &Node, detail: String) -> BackendError {
        BackendError::Unsupported { backend: NAME, node: node.path(), op: node.op.stem(), detail }
    }

    /// What a matmul with weights of `format` reads.
    pub fn input_kind(&self, format: Format) -> Input {
        match self.profile.for_weights(format) {
            ActivationPrecision::F32 => Input::F32,
            ActivationPrecision::F16 => Input::F16,
            ActivationPrecision::Q8(_) => Input::Q8,
        }
    }

    /// A shader of this device.
    pub fn variant(&self, op: &'static str, sizes: &[(&'static str, u32)]) -> Variant {
        Variant::new(op, self.features, sizes)
    }

    /// Adds a dispatch that reads no matrix and no cache.
    pub fn push(&mut self, variant: Variant, grid: Grid, params: &[(&'static str, Param)]) {
        self.dispatches.push(Dispatch {
            variant,
            params: params.to_vec(),
            weights: Vec::new(),
            state: StateBinding::None,
            grid,
            when_split: false,
        });
    }

    /// The last dispatch, to add bindings to.
    pub fn last(&mut self) -> Option<&mut Dispatch> {
        self.dispatches.last_mut()
    }

    /// The matrix behind a slice.
    pub fn matrix(&self, node: &Node, slice: &WeightSlice) -> Result<&'a Tensor, BackendError> {
        let tensor = self.tensors.matrices.get(&slice.tensor);
        tensor.ok_or_else(|| self.unsupported(node, format!("tensor {} is not laid out", slice.tensor)))
    }

    /// How the rows of a slice's tensor lie.
    pub fn layout(&self, slice: &WeightSlice) -> Result<RowLayout, BackendError> {
        let tensor = self.tensors.matrices.get(&slice.tensor);
        tensor.map(|tensor| tensor.layout).ok_or_else(|| BackendError::Value {
            value: self.plan.graph.weight(slice.tensor).name.clone(),
            detail: "is read as a matrix, and not laid out as one".into(),
        })
    }

    /// Binds a part of a matrix to the last dispatch.
    pub fn bind_part(&mut self, slice: &WeightSlice, part: usize) {
        if let Some(dispatch) = self.last() {
            dispatch.weights.push((slice.tensor, part));
        }
    }

    /// The rows of a value as a matmul reads them: as they are, or made 8-bit in scratch.
    pub fn activations(&mut self, value: ValueId, input: Input) -> Result<u32, BackendError> {
        let heads = 1;
        self.activations_of_heads(value, input, heads)
    }

    /// The same, each of the heads in the last axis being a row.
    pub fn activations_of_heads(
        &mut self,
        value: ValueId,
        input: Input,
        heads: usize,
    ) -> Result<u32, BackendError> {
        let x = self.at(value)?;
        if input != Input::Q8 {
            return Ok(x);
        }
        let shape = self.shape(value);
        let width = shape.width().ok_or_else(|| BackendError::Value {
            value: value.to_string(),
            detail: format!("{shape} has no fixed last axis"),
        })?;
        let cols = (width / heads.max(1)) as u32;
        let rows = Rows::of(shape);
        let rows = Rows { each: rows.each * heads as u32, ..rows };
        let row_words = cols / 4 + cols / 32;
        let y = self.scratch(rows.count(self.plan.max_sizes) * row_words as usize);
        let variant = self.variant("quantize_q8", &[("LANES", 64)]);
        let params: [(&str, Param); 5] = [
            ("x", x.into()),
            ("y", y.into()),
            ("cols", cols.into()),
            ("axis", rows.code().into()),
            ("rows_each", rows.each.into()),
        ];
        self.push(variant, Grid::elements(rows, cols / 32, 64), &params);
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shader::compose;

    #[test]
    fn what_does_not_fit_into_x_is_all_there() {
        let sizes = StepSizes { tokens: 256, logits_rows: 1, cached: 1 };
        let tokens = Rows { axis: Axis::Tokens, each: 8 };
        for width in [1u32, 8191, 8192, 100_000, 1_000_003] {
            let [x, y, z] = Grid::elements(tokens, width, 256).resolve(sizes, 1);
            let wanted = (256 * 8 * u64::from(width)).div_ceil(256);
            let found = u64::from(x) * u64::from(y) * u64::from(z);
            assert!(x <= MAX_GROUPS && y <= MAX_GROUPS && z == 1, "{width}");
            assert!(found >= wanted && found < wanted + u64::from(x), "{width}: {found} of {wanted}");
        }
        let one = Extent::Fixed(1);
        let many = Grid::new(Extent::Fixed(65_536), Extent::Fixed(3), one);
        assert_eq!(many.spilling().resolve(sizes, 1), [65_535, 3, 2]);
        assert_eq!(many.resolve(sizes, 1), [65_536, 3, 1], "left for the device to refuse");
    }

    /// Only shaders that ask for the size of the grid can find what was moved within it.
    #[test]
    fn shaders_that_spill_look_for_it() {
        let variants = [
            Variant::new("matmul", Features::default(), &[("LANES", 64)]).weight("weight", Format::Q8_0),
            Variant::new("expert_matmul", Features::default(), &[("LANES", 64)])
                .weight("weight", Format::Q8_0),
            Variant::new("quantize_q8", Features::default(), &[("LANES", 64)]),
            Variant::new("add", Features::default(), &[("LANES", 64)]),
            Variant::new("mul", Features::default(), &[("LANES", 64)]),
            Variant::new("gated_act", Features::default(), &[("LANES", 64)]),
        ];
        for variant in variants {
            let text = compose(&variant).unwrap();
            let reads = text.contains("* grid.x + wg.x");
            assert_eq!(reads, variant.op != "expert_matmul", "{variant}");
        }
    }
}
