//! The arena: nodes in execution order, values with one producer each, weights, declared state, step inputs.

use super::infer;
use super::op::{DType, Dim, Op, Shape};
use super::rope::RopeSpec;
use super::stage::Stage;
use crate::quant::Format;
use crate::verify::GraphError;
use serde::Serialize;
use std::fmt;
use std::ops::Range;

macro_rules! typed_id {
    ($($(#[$doc:meta])* $name:ident $letter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        pub struct $name(pub u32);

        impl $name {
            /// The position in its arena.
            #[must_use]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
    )*};
}

typed_id! {
    /// A node of the graph; ids do not change when passes drop nodes.
    NodeId "n";
    /// A value: the output of one node, or a boundary input.
    ValueId "v";
    /// A weight tensor.
    WeightId "w";
    /// A declared state.
    StateId "s";
    /// A RoPE table.
    RopeTableId "r";
    /// A layer, from 0.
    LayerIdx "layer-";
}

/// One operation with its operands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What it is called: the module's name in Hugging Face's vocabulary (`q_proj`, `router` …).
    pub name: &'static str,
    /// What it does.
    pub op: Op,
    /// Operands, in the order that the op's doc gives.
    pub inputs: Vec<ValueId>,
    /// Results, in the order that the op's doc gives.
    pub outputs: Vec<ValueId>,
    /// The layer it belongs to; `None` for nodes of the whole model.
    pub layer: Option<LayerIdx>,
}

impl Node {
    /// `layer-3/q_proj`, or the bare name.
    #[must_use]
    pub fn path(&self) -> String {
        match self.layer {
            Some(layer) => format!("{layer}/{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// What flows between nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Value {
    /// Its id.
    pub id: ValueId,
    /// Shape, outermost first.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// The node that makes it; `None` for a boundary input.
    pub producer: Option<NodeId>,
    /// The state that it is, for `DType::State`.
    pub state: Option<StateId>,
}

/// A weight tensor that the graph reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightDecl {
    /// Its id.
    pub id: WeightId,
    /// The tensor's name in the file.
    pub name: String,
    /// `[out, in]`, `[E, out, in]` or `[n]`; outermost first.
    pub shape: Vec<usize>,
    /// How its rows are stored.
    pub format: Format,
    /// The elements of the tensor that it is, for a part of a vector in F32; `None` is the whole tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Range<usize>>,
}

impl WeightDecl {
    /// Its bytes in those of its tensor; `None` where the tensor is shorter.
    #[must_use]
    pub fn bytes_in<'a>(&self, tensor: &'a [u8]) -> Option<&'a [u8]> {
        match &self.part {
            None => Some(tensor),
            Some(part) => tensor.get(part.start * size_of::<f32>()..part.end * size_of::<f32>()),
        }
    }
}

/// Tensors of the file that the graph leaves out on purpose.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    /// What their names begin with.
    pub prefix: String,
    /// Why.
    pub reason: &'static str,
    /// How many there are.
    pub tensors: usize,
    /// Their bytes in the file.
    pub bytes: u64,
}

/// What a state's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateRole {
    /// Keys after RoPE.
    Key,
    /// Values.
    Value,
    /// Keys of an indexer.
    IndexKey,
    /// The last inputs of a causal convolution, oldest first.
    Conv,
    /// What a recurrence carries from token to token.
    Ssm,
    /// What windows come to that are kept in place of their positions.
    Entry,
    /// What the positions of a window that is not complete have brought to it.
    Window,
}

/// How long a state lives, and what its rows are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// A row for every token, stored as the session's KV type says.
    PerToken {
        /// Only the last so many tokens are ever read.
        window: Option<usize>,
    },
    /// One row for a whole sequence, f32, which every token changes.
    PerSequence,
}

/// How a sequence goes back to a shorter one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rewind {
    /// To any length: rows behind it are never read.
    Free,
    /// Only to a length at which the state was kept, which the beginning always is.
    Checkpoint,
}

/// Something that outlives a step: declared by the graph, allocated by the session.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StateDecl {
    /// Its id.
    pub id: StateId,
    /// Keys or values.
    pub role: StateRole,
    /// Whose.
    pub layer: LayerIdx,
    /// KV heads.
    pub heads: usize,
    /// Elements of a head; a row holds heads · width elements for one token.
    pub width: usize,
    /// The axes of a row, outermost first: its heads, and what is in one of them.
    pub shape: Vec<usize>,
    /// How long it lives.
    pub lifetime: Lifetime,
}

impl StateDecl {
    /// The stage that shows what it holds behind the last token, for a state that has one row for a whole sequence.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        match self.role {
            StateRole::Key
            | StateRole::Value
            | StateRole::IndexKey
            | StateRole::Entry
            | StateRole::Window => None,
            StateRole::Conv => Some(Stage::ConvState),
            StateRole::Ssm => Some(Stage::SsmState),
        }
    }

    /// Elements of a row: what one token adds, or all that one sequence has.
    #[must_use]
    pub fn row_elems(&self) -> usize {
        self.heads * self.width
    }

    /// Whether it has a row for every token, stored as the KV type says.
    #[must_use]
    pub fn is_per_token(&self) -> bool {
        matches!(self.lifetime, Lifetime::PerToken { .. })
    }

    /// How a sequence goes back.
    #[must_use]
    pub fn rewind(&self) -> Rewind {
        match self.lifetime {
            Lifetime::PerToken { .. } => Rewind::Free,
            Lifetime::PerSequence => Rewind::Checkpoint,
        }
    }

    /// Only the last so many tokens are ever read; `None` where all are, or a sequence has one row.
    #[must_use]
    pub fn window(&self) -> Option<usize> {
        match self.lifetime {
            Lifetime::PerToken { window } => window,
            Lifetime::PerSequence => None,
        }
    }
}

/// What a stage shows of a layer's states that have one row for a whole sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateStage {
    /// Which.
    pub stage: Stage,
    /// Whose.
    pub layer: LayerIdx,
    /// The states, in the order of the graph: what they hold stands one behind the other along the first axis.
    pub states: Vec<StateId>,
    /// The axes of all of them together.
    pub shape: Vec<usize>,
}

/// The boundary inputs that every step gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepInputs {
    /// Token ids `[T]` U32.
    pub tokens: ValueId,
    /// Positions `[T]` U32: RoPE's angle and the causal mask.
    pub positions: ValueId,
    /// The sequence that each token belongs to `[T]` U32.
    pub sequence: ValueId,
    /// Where each token's k and v go in the state `[T]` U32.
    pub kv_slots: ValueId,
    /// Rows whose logits are asked for `[R]` U32.
    pub logits_rows: ValueId,
}

/// The static op graph. Nodes stand in execution order; ids are stable across passes, which only remove nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Graph {
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// All values by id.
    pub values: Vec<Value>,
    /// All weights by id.
    pub weights: Vec<WeightDecl>,
    /// All states by id.
    pub states: Vec<StateDecl>,
    /// All RoPE tables by id.
    pub rope_tables: Vec<RopeSpec>,
    /// The step's inputs.
    pub inputs: StepInputs,
    /// Further boundary inputs: typed values that a segment receives (single-op graphs in tests, split plans).
    pub boundary: Vec<ValueId>,
    /// The values that a step is run for: logits [R, vocab] in a model, anything in a segment.
    pub outputs: Vec<ValueId>,
    /// Layers in the model.
    pub num_layers: usize,
    /// How many tokens the vocabulary has, where that is fewer than the rows of the embedding and of lm_head: a table that
    /// was padded. What lies beyond is computed, and never chosen. `None`: every row is a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_tokens: Option<usize>,
    /// Tensors of the file that the graph leaves out on purpose.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// It is a part of a graph with quantized weights, whatever it has itself: how floats are summed may depend on that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_part_of_quantized: bool,
    next_node: u32,
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    /// What stages show of states, in the order of the graph.
    #[must_use]
    pub fn state_stages(&self) -> Vec<StateStage> {
        let mut stages: Vec<StateStage> = Vec::new();
        for state in &self.states {
            let Some(stage) = state.stage() else { continue };
            match stages.iter_mut().find(|s| s.stage == stage && s.layer == state.layer) {
                Some(same) => {
                    same.states.push(state.id);
                    if let (Some(all), Some(rows)) = (same.shape.first_mut(), state.shape.first()) {
                        *all += rows;
                    }
                }
                None => {
                    let (layer, shape) = (state.layer, state.shape.clone());
                    stages.push(StateStage { stage, layer, states: vec![state.id], shape });
                }
            }
        }
        stages
    }

    /// An empty graph with its five step inputs.
    #[must_use]
    pub fn new() -> Graph {
        let mut graph = Graph {
            nodes: Vec::new(),
            values: Vec::new(),
            weights: Vec::new(),
            states: Vec::new(),
            rope_tables: Vec::new(),
            inputs: StepInputs {
                tokens: ValueId(0),
                positions: ValueId(1),
                sequence: ValueId(2),
                kv_slots: ValueId(3),
                logits_rows: ValueId(4),
            },
            boundary: Vec::new(),
            outputs: Vec::new(),
            num_layers: 0,
            num_tokens: None,
            left_out: Vec::new(),
            is_part_of_quantized: false,
            next_node: 0,
        };
        for dim in [Dim::Tokens, Dim::Tokens, Dim::Tokens, Dim::Tokens, Dim::LogitsRows] {
            graph.new_value(Shape::new(&[dim]), DType::U32, None, None);
        }
        graph
    }

    fn new_value(
        &mut self,
        shape: Shape,
        dtype: DType,
        producer: Option<NodeId>,
        state: Option<StateId>,
    ) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { id, shape, dtype, producer, state });
        id
    }

    /// Declares a typed value that comes from outside the segment.
    pub fn add_boundary(&mut self, shape: Shape, dtype: DType) -> ValueId {
        let id = self.new_value(shape, dtype, None, None);
        self.boundary.push(id);
        id
    }

    /// Declares a weight.
    pub fn add_weight(&mut self, name: impl Into<String>, shape: Vec<usize>, format: Format) -> WeightId {
        let id = WeightId(self.weights.len() as u32);
        self.weights.push(WeightDecl { id, name: name.into(), shape, format, part: None });
        id
    }

    /// Declares a part of a vector in F32.
    pub fn add_weight_part(&mut self, name: impl Into<String>, part: Range<usize>) -> WeightId {
        let id = self.add_weight(name, vec![part.len()], Format::F32);
        self.weights[id.index()].part = Some(part);
        id
    }

    /// Declares a state of one layer.
    pub fn add_state(
        &mut self,
        role: StateRole,
        layer: LayerIdx,
        heads: usize,
        width: usize,
        lifetime: Lifetime,
    ) -> StateId {
        let id = StateId(self.states.len() as u32);
        self.states.push(StateDecl { id, role, layer, heads, width, shape: vec![heads, width], lifetime });
        id
    }

    /// The states that have one row for a whole sequence.
    pub fn sequence_states(&self) -> impl Iterator<Item = StateId> {
        self.states.iter().filter(|state| !state.is_per_token()).map(|state| state.id)
    }

    /// Declares a state of one layer that has one row of this shape for a whole sequence.
    pub fn add_sequence_state(&mut self, role: StateRole, layer: LayerIdx, shape: &[usize]) -> StateId {
        let (heads, rest) = shape.split_first().map_or((1, shape), |(heads, rest)| (*heads, rest));
        let id = self.add_state(role, layer, heads, rest.iter().product(), Lifetime::PerSequence);
        self.states[id.index()].shape = shape.to_vec();
        id
    }

    /// The table of a RoPE specification; equal specifications share one.
    pub fn add_rope_table(&mut self, spec: RopeSpec) -> RopeTableId {
        if let Some(i) = self.rope_tables.iter().position(|s| *s == spec) {
            return RopeTableId(i as u32);
        }
        self.rope_tables.push(spec);
        RopeTableId(self.rope_tables.len() as u32 - 1)
    }

    /// Appends a node; its outputs' shapes are inferred from the op and the inputs.
    ///
    /// # Errors
    /// [`GraphError`] naming the node where operands do not fit the op.
    pub fn push(
        &mut self,
        layer: Option<LayerIdx>,
        name: &'static str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>, GraphError> {
        let id = NodeId(self.next_node);
        let node = Node { id, name, op, inputs: inputs.to_vec(), outputs: Vec::new(), layer };
        let outputs = infer::infer(self, &node)?;
        self.next_node += 1;
        let outputs: Vec<ValueId> =
            outputs.into_iter().map(|o| self.new_value(o.shape, o.dtype, Some(id), o.state)).collect();
        self.nodes.push(Node { outputs: outputs.clone(), ..node });
        Ok(outputs)
    }

    /// Appends a tap on a value, or on several side by side.
    ///
    /// # Errors
    /// [`GraphError`] where the values cannot stand side by side.
    pub fn tap(
        &mut self,
        layer: Option<LayerIdx>,
        stage: Stage,
        inputs: &[ValueId],
    ) -> Result<(), GraphError> {
        self.push(layer, stage.name(), Op::Tap { stage }, inputs).map(drop)
    }

    /// The node of an id; `None` if a pass dropped it.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.binary_search_by_key(&id, |n| n.id).ok().map(|i| &self.nodes[i])
    }

    /// The value of an id.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// The weight of an id.
    #[must_use]
    pub fn weight(&self, id: WeightId) -> &WeightDecl {
        &self.weights[id.index()]
    }

    /// The state of an id.
    #[must_use]
    pub fn state(&self, id: StateId) -> &StateDecl {
        &self.states[id.index()]
    }

    /// How a sequence that this graph computes goes back: as the least willing of its states.
    #[must_use]
    pub fn rewind(&self) -> Rewind {
        self.states.iter().map(StateDecl::rewind).max().unwrap_or(Rewind::Free)
    }

    /// The nodes that read a value, in execution order.
    pub fn consumers(&self, id: ValueId) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |n| n.inputs.contains(&id))
    }

    /// Rows of the embedding: token ids lie below it. `None` for a graph without one, such as a single operation's.
    pub fn vocab_size(&self) -> Option<usize> {
        self.nodes.iter().find_map(|node| {
            let Op::Embed { table, scale: _ } = &node.op else { return None };
            Some(table.rows.len())
        })
    }

    /// Whether the model has quantized weights, here or in another part of it.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        self.is_part_of_quantized || self.weights.iter().any(|weight| weight.format.is_quantized())
    }

    /// How many of a row's `width` logits may be chosen from: the first so many, those of tokens.
    #[must_use]
    pub fn choosable(&self, width: usize) -> usize {
        self.num_tokens.map_or(width, |tokens| tokens.min(width))
    }

    /// The taps of the graph: node, stage, layer.
    pub fn taps(&self) -> impl Iterator<Item = (&Node, Stage)> {
        self.nodes.iter().filter_map(|n| n.op.tapped().map(|s| (n, s)))
    }

    /// Whether each node (in the order of `nodes`) leads to an output: production, or only to a tap: recomputed.
    /// Taps count as production where what they tap does. State written is production.
    #[must_use]
    pub fn feeds_outputs(&self) -> Vec<bool> {
        let mut live = vec![false; self.values.len()];
        for output in &self.outputs {
            live[output.index()] = true;
        }
        let mut feeds = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let is_tap = matches!(node.op, Op::Tap { .. });
            if !is_tap
                && (!node.op.written_states().is_empty() || node.outputs.iter().any(|o| live[o.index()]))
            {
                feeds[i] = true;
                for input in &node.inputs {
                    live[input.index()] = true;
                }
            }
        }
        for (i, node) in self.nodes.iter().enumerate() {
            if matches!(node.op, Op::Tap { .. }) {
                feeds[i] = node.inputs.iter().all(|v| {
                    let producer = self.value(*v).producer;
                    producer
                        .is_none_or(|p| self.nodes.iter().position(|n| n.id == p).is_none_or(|p| feeds[p]))
                });
            }
        }
        feeds
    }
}
