//! Stage 5: Plan → launches with their buffers resolved.

mod attention;
mod compressed;
mod recurrent;

use super::memory::{Val, WeightBytes};
use super::ops::Launch as Work;
use super::ops::activations::Kinds;
use super::ops::attention::Largest;
use super::ops::attention_scores::{AttentionScores, AttentionSoftmax};
use super::ops::concat::Concat;
use super::ops::elementwise::{Binary, Elementwise, ExpertCombine, GatedAct, GetRows, Slice};
use super::ops::embed::Embed;
use super::ops::given_experts::GivenExperts;
use super::ops::head_matmul::{self, TransposedHeads};
use super::ops::index_scores::IndexScores;
use super::ops::index_select::IndexSelect;
use super::ops::kv_write::{Heads, KvWrite};
use super::ops::layer_norm::LayerNorm;
use super::ops::matmul::{Experts, MatMuls, Norm, Projection, Then};
use super::ops::mul_heads::MulHeads;
use super::ops::pointwise::{self, Pointwise};
use super::ops::position_scale::PositionScale;
use super::ops::rms_norm::RmsNorm;
use super::ops::rope::Rope;
use super::ops::router::{self, Route};
use super::ops::weights::Matrix;
use super::patterns;
use super::share::{Input, Operands, Output, Share, StateInput, StateOutput};
use moe_run_graph::ir::{ActivationFn, AttentionAttrs, Node, Op, StateId, ValueId, WeightId, WeightSlice};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::{ActProfile, ActivationPrecision, Format};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::WeightSource;
use std::sync::Arc;

/// The sizes that scratch memory must have for a program.
#[derive(Clone, Copy, Default)]
pub struct Needs {
    /// Roundings of activations.
    pub kinds: Kinds,
    /// Elements of the largest prepared input: slots × inner.
    pub activation_elems: usize,
    /// The longest row of anything.
    pub row_elems: usize,
    /// Slots of the largest product.
    pub slots: usize,
    /// Groups of the largest product.
    pub groups: usize,
    /// K.
    pub per_tok: usize,
    /// Elements of sums in f64, beside those of products.
    pub wide_elems: usize,
    /// Attention.
    pub attention: Largest,
}

impl Needs {
    /// What serves both.
    pub fn max(self, other: Needs) -> Needs {
        let (a, b) = (self.attention, other.attention);
        Needs {
            kinds: self.kinds.union(other.kinds),
            activation_elems: self.activation_elems.max(other.activation_elems),
            row_elems: self.row_elems.max(other.row_elems),
            slots: self.slots.max(other.slots),
            groups: self.groups.max(other.groups),
            per_tok: self.per_tok.max(other.per_tok),
            wide_elems: self.wide_elems.max(other.wide_elems),
            attention: Largest {
                group: a.group.max(b.group),
                head_dim: a.head_dim.max(b.head_dim),
                value_head_dim: a.value_head_dim.max(b.value_head_dim),
                kv_heads: a.kv_heads.max(b.kv_heads),
            },
        }
    }
}

/// A plan with its launches.
pub struct Program {
    /// The plan.
    pub plan: Arc<Plan>,
    /// One for each launch of the plan.
    pub work: Vec<Box<dyn Work>>,
    /// Where each value lives; `None` for values inside launches, and states.
    pub places: Vec<Option<Val>>,
    /// Words that the arena must have.
    pub arena_words: usize,
    /// Scratch that it needs.
    pub needs: Needs,
}

/// Compiles a plan.
///
/// # Errors
/// [`BackendError::Unsupported`] for operands that no launch takes, [`BackendError::Weight`] for bytes that are missing.
pub fn compile(plan: Plan, weights: &dyn WeightSource, profile: ActProfile) -> Result<Program, BackendError> {
    let (places, arena_words) = place(&plan);
    let (needs, operands) = (Needs::default(), Operands::default());
    let mut compiler = Compiler { plan: &plan, weights, profile, places: &places, needs, operands };
    let mut work = Vec::with_capacity(plan.launches.len());
    for launch in &plan.launches {
        work.push(compiler.launch(launch)?);
        if !std::mem::take(&mut compiler.operands).check() {
            return Err(BackendError::mismatch(launch.pattern));
        }
    }
    let mut needs = compiler.needs;
    for value in &plan.graph.values {
        needs.row_elems = needs.row_elems.max(value.shape.fixed_elems());
    }
    Ok(Program { plan: Arc::new(plan), work, places, arena_words, needs })
}

/// The plan's slots, and behind them the boundary inputs.
fn place(plan: &Plan) -> (Vec<Option<Val>>, usize) {
    let graph = &plan.graph;
    let mut places = vec![None; graph.values.len()];
    for slot in &plan.memory.slots {
        let shape = &graph.value(slot.value).shape;
        let at = slot.offset_bytes / size_of::<f32>();
        places[slot.value.index()] = Some(Val::new(at, shape, plan.max_sizes));
    }
    let mut end = (plan.memory.arena_bytes / size_of::<f32>()).next_multiple_of(ALIGN_WORDS);
    let inputs = graph.inputs;
    let inputs = [inputs.tokens, inputs.positions, inputs.sequence, inputs.kv_slots, inputs.logits_rows];
    for value in inputs.into_iter().chain(graph.boundary.iter().copied()) {
        let shape = &graph.value(value).shape;
        places[value.index()] = Some(Val::new(end, shape, plan.max_sizes));
        end += shape.elems(plan.max_sizes).next_multiple_of(ALIGN_WORDS);
    }
    (places, end)
}

/// Values begin on cache lines of their own.
const ALIGN_WORDS: usize = 64;

struct Compiler<'a> {
    plan: &'a Plan,
    weights: &'a dyn WeightSource,
    profile: ActProfile,
    places: &'a [Option<Val>],
    needs: Needs,
    /// Of the launch that is being compiled.
    operands: Operands,
}

fn unsupported(node: &Node, detail: impl Into<String>) -> BackendError {
    BackendError::Unsupported {
        backend: super::NAME,
        node: node.path(),
        op: node.op.stem(),
        detail: detail.into(),
    }
}

impl Compiler<'_> {
    fn val(&self, node: &Node, value: ValueId) -> Result<Val, BackendError> {
        let val = self.places[value.index()];
        val.ok_or_else(|| unsupported(node, format!("{value} has no buffer in this plan")))
    }

    /// A value that the launch reads.
    fn input(&self, node: &Node, i: usize) -> Result<Input, BackendError> {
        Ok(self.operands.input(self.val(node, node.inputs[i])?))
    }

    /// A value that the launch writes, row by row unless it says otherwise ([`Output::shared`]).
    fn output(&self, node: &Node) -> Result<Output, BackendError> {
        Ok(self.operands.output(self.val(node, node.outputs[0])?))
    }

    /// As [`Compiler::output`], of a value that nobody may want.
    fn maybe(&self, value: ValueId) -> Option<Output> {
        self.places[value.index()].map(|val| self.operands.output(val))
    }

    fn bytes(&self, id: WeightId) -> Result<&[u8], BackendError> {
        let decl = self.plan.graph.weight(id);
        let missing = || BackendError::Weight { name: decl.name.clone(), wanted_bytes: 1, found_bytes: 0 };
        self.weights.weight(decl).ok_or_else(missing)
    }

    fn vector(&self, id: WeightId) -> Result<Box<[f32]>, BackendError> {
        let decl = self.plan.graph.weight(id);
        let mut out = vec![0.0; decl.shape.iter().product()];
        decl.format.decode_row(self.bytes(id)?, &mut out);
        Ok(out.into())
    }

    fn opt_vector(&self, id: Option<WeightId>) -> Result<Option<Box<[f32]>>, BackendError> {
        id.map(|id| self.vector(id)).transpose()
    }

    fn matrix(&self, slice: &WeightSlice) -> Result<Matrix, BackendError> {
        let decl = self.plan.graph.weight(slice.tensor);
        let [.., tensor_rows, inner] = decl.shape[..] else {
            return Err(BackendError::Weight { name: decl.name.clone(), wanted_bytes: 1, found_bytes: 0 });
        };
        let first_expert = slice.experts.as_ref().map_or(0, |e| e.start);
        let activation = self.profile.for_weights(decl.format);
        // SAFETY: the executable holds the weight source for as long as it holds the launches.
        let bytes = unsafe { WeightBytes::new(self.bytes(slice.tensor)?) };
        let rows = slice.rows.clone();
        let mut matrix = Matrix::new(decl.format, activation, bytes, inner, tensor_rows, rows, first_expert);
        // What is kept in f32 matters to small differences: a router. And where 8-bit steps follow, equal bits keep a last
        // bit from moving one; a model without quantized weights has none, and needs the speed of f32.
        let steps_follow = matches!(self.profile, ActProfile::Q8 { .. }) && self.plan.graph.is_quantized();
        let floats = activation == ActivationPrecision::F32 && !decl.format.is_quantized();
        matrix.wide = floats && (decl.format == Format::F32 || steps_follow);
        Ok(matrix)
    }

    /// What says which positions attention sees, where something does.
    fn mask(&self, node: &Node, attrs: &AttentionAttrs, at: usize) -> Result<Option<Input>, BackendError> {
        attrs.masked.then(|| self.input(node, at)).transpose()
    }

    /// A state that attention reads, which may also write to it.
    fn state(&self, node: &Node, value: ValueId) -> Result<usize, BackendError> {
        let state = self.plan.graph.value(value).state;
        state.map(|s| s.index()).ok_or_else(|| unsupported(node, format!("{value} is no state of the graph")))
    }

    /// A state that the launch reads.
    fn state_input(&self, node: &Node, value: ValueId) -> Result<StateInput, BackendError> {
        Ok(self.operands.state_input(self.state(node, value)?))
    }

    /// A state that the launch writes.
    fn state_output(&self, state: StateId, share: Share) -> StateOutput {
        self.operands.state_output(state.index()).shared(share)
    }

    fn projection(&self, node: &Node) -> Result<Projection, BackendError> {
        let (weight, bias, scale) = match &node.op {
            Op::MatMul { weight, bias, scale } => (weight, *bias, *scale),
            Op::ExpertMatMul { weight, bias } => (weight, *bias, None),
            Op::HeadMatMul { weight, transposed: false } => (weight, None, None),
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::PositionScale(_)
            | Op::MulHeads
            | Op::HeadMatMul { weight: _, transposed: true }
            | Op::Rope { .. }
            | Op::KvWrite { .. }
            | Op::Attention(_)
            | Op::AttentionScores(_)
            | Op::AttentionSoftmax(_)
            | Op::Router(_)
            | Op::GivenExperts(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { .. }
            | Op::GatedAct { .. }
            | Op::ExpertCombine
            | Op::CausalConv(_)
            | Op::DeltaGates { .. }
            | Op::DeltaRule(_)
            | Op::SsmScan(_)
            | Op::HyperGates(_)
            | Op::HyperConnect { .. }
            | Op::Compress(_)
            | Op::CompressedAttention(_)
            | Op::Add
            | Op::Mul
            | Op::Pointwise { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::GetRows
            | Op::Tap { .. } => return Err(BackendError::mismatch(node.op.stem())),
        };
        let matrix = self.matrix(weight)?;
        let out = self.maybe(node.outputs[0]).map(|out| out.with_width(matrix.rows));
        Ok(Projection { matrix, scale, bias: self.opt_vector(bias)?, out })
    }

    fn norm(&self, node: &Node) -> Result<Norm, BackendError> {
        let (weight, eps) = self.norm_weight(node)?;
        Ok(Norm { weight, eps, out: self.maybe(node.outputs[0]) })
    }

    /// The weight of a norm's head, and its eps.
    fn norm_weight(&self, node: &Node) -> Result<(Box<[f32]>, f32), BackendError> {
        let Op::RmsNorm { weight, eps, heads } = node.op else {
            return Err(BackendError::mismatch(node.op.stem()));
        };
        let weight = match weight {
            Some(weight) => self.vector(weight)?,
            None => {
                let width = self.plan.graph.value(node.inputs[0]).shape.width().unwrap_or(1);
                vec![1.0; width / heads].into()
            }
        };
        Ok((weight, eps))
    }

    fn route(&self, node: &Node) -> Result<Route, BackendError> {
        let Op::Router(attrs) = &node.op else { return Err(BackendError::mismatch(node.op.stem())) };
        Ok(Route {
            logits: self.input(node, 0)?,
            attrs: attrs.clone(),
            bias: self.opt_vector(attrs.selection_bias)?,
            expert_scale: self.opt_vector(attrs.expert_scale)?,
            ids: self.maybe(node.outputs[0]),
            weights: self.maybe(node.outputs[1]),
        })
    }

    /// A product launch over the nodes `products`, whose input is `x`.
    fn products(
        &mut self,
        x: Input,
        pick: Option<(Input, Option<Output>)>,
        norm: Option<Norm>,
        route: Option<Route>,
        products: &[&Node],
        then: Then,
    ) -> Result<Box<dyn Work>, BackendError> {
        let first = products[0];
        let projections = products.iter().map(|n| self.projection(n)).collect::<Result<Vec<_>, _>>()?;
        let inner = projections[0].matrix.inner;
        if inner == 0 || projections.iter().any(|p| p.matrix.inner != inner) {
            return Err(unsupported(first, format!("rows of {inner} elements")));
        }
        let then = then.with_width(projections[0].matrix.rows);
        let mut row_per_expert = false;
        let mut experts = None;
        if let Op::ExpertMatMul { weight, .. } = &first.op {
            let shape = &self.plan.graph.weight(weight.tensor).shape;
            let count = weight.experts.as_ref().map_or(shape[0], |e| e.len());
            let per_tok = self.plan.graph.value(first.inputs[1]).shape.fixed_elems();
            row_per_expert = self.plan.graph.value(first.inputs[0]).shape.0.len() == 3;
            let choice = match route {
                Some(route) => Experts::Route(route),
                None => Experts::Chosen { ids: self.input(first, 1)? },
            };
            self.needs.groups = self.needs.groups.max(count);
            self.needs.per_tok = self.needs.per_tok.max(per_tok);
            experts = Some((per_tok, count, choice));
        }
        if let Op::HeadMatMul { weight, .. } = &first.op {
            let shape = &self.plan.graph.weight(weight.tensor).shape;
            let heads = weight.experts.as_ref().map_or(shape[0], |e| e.len());
            row_per_expert = true;
            self.needs.groups = self.needs.groups.max(heads);
            self.needs.per_tok = self.needs.per_tok.max(heads);
            experts = Some((heads, heads, Experts::All));
        }
        let kinds = projections.iter().fold(Kinds::default(), |k, p| k.with(p.matrix.activation));
        let launch = MatMuls { x, pick, norm, experts, row_per_expert, projections, kinds, then };
        let slots = launch.max_slots(self.plan.max_sizes);
        self.needs.kinds = self.needs.kinds.union(kinds);
        self.needs.slots = self.needs.slots.max(slots);
        self.needs.activation_elems = self.needs.activation_elems.max(slots * inner);
        Ok(Box::new(launch))
    }

    fn add_to(&self, product: &Node, add: &Node) -> Result<(Input, Output), BackendError> {
        let other = usize::from(add.inputs[0] == product.outputs[0]);
        Ok((self.input(add, other)?, self.output(add)?))
    }

    fn gated(&self, act: &Node) -> Result<Then, BackendError> {
        let Op::GatedAct { activation: ActivationFn::Silu } = act.op else {
            return Err(BackendError::mismatch(act.op.stem()));
        };
        Ok(Then::Gated { activated: self.maybe(act.outputs[0]), out: self.maybe(act.outputs[1]) })
    }

    fn launch(&mut self, launch: &Launch) -> Result<Box<dyn Work>, BackendError> {
        let plan = self.plan;
        let nodes = plan.launch_nodes(launch).collect();
        let nodes = patterns::by_role(&plan.graph, launch.pattern, nodes)?;
        match (launch.pattern, nodes.as_slice()) {
            (patterns::NORM_QKV | patterns::NORM_ROUTER, [norm, products @ ..]) => {
                let (x, norm) = (self.input(norm, 0)?, self.norm(norm)?);
                self.products(x, None, Some(norm), None, products, Then::Nothing)
            }
            (patterns::GATE_UP, [norm, gate, up, act]) => {
                let (x, norm) = (self.input(norm, 0)?, self.norm(norm)?);
                self.products(x, None, Some(norm), None, &[gate, up], self.gated(act)?)
            }
            (patterns::GATE_UP, [gate, up, act]) => {
                self.products(self.input(gate, 0)?, None, None, None, &[gate, up], self.gated(act)?)
            }
            (patterns::MATMUL_RESIDUAL, [product, add]) => {
                let (residual, out) = self.add_to(product, add)?;
                self.products(
                    self.input(product, 0)?,
                    None,
                    None,
                    None,
                    &[product],
                    Then::Add { residual, out },
                )
            }
            (patterns::FINAL_NORM_LM_HEAD, [pick, norm, product]) => {
                let ids = (self.input(pick, 1)?, self.maybe(pick.outputs[0]));
                let (x, norm) = (self.input(pick, 0)?, self.norm(norm)?);
                self.products(x, Some(ids), Some(norm), None, &[product], Then::Nothing)
            }
            (patterns::ROUTE_GATE_UP, [router, gate, up, act]) => {
                let route = self.route(router)?;
                self.products(self.input(gate, 0)?, None, None, Some(route), &[gate, up], self.gated(act)?)
            }
            (patterns::EXPERTS_GATE_UP, [gate, up, act]) => {
                self.products(self.input(gate, 0)?, None, None, None, &[gate, up], self.gated(act)?)
            }
            (patterns::DOWN_COMBINE, [down, combine, add]) => {
                let then = Then::Combine {
                    weights: self.input(combine, 1)?,
                    combined: self.maybe(combine.outputs[0]),
                    add: Some(self.add_to(combine, add)?),
                };
                self.products(self.input(down, 0)?, None, None, None, &[down], then)
            }
            (patterns::ROPE_KV, nodes) => {
                let (q, heads, cache) = self.rotated(nodes)?;
                Ok(Box::new(KvWrite { q: Some((q, heads)), cache }))
            }
            (patterns::ATTENTION_STEP, [rotations @ .., attention]) => {
                let (q, heads, cache) = self.rotated(rotations)?;
                self.attention(attention, q, Some((heads, cache)))
            }
            (_, [node]) => self.single(node),
            (pattern, _) => Err(BackendError::mismatch(pattern)),
        }
    }

    /// An op as a launch of its own.
    fn single(&mut self, node: &Node) -> Result<Box<dyn Work>, BackendError> {
        Ok(match &node.op {
            Op::HeadMatMul { weight, transposed: true } => {
                let matrix = self.matrix(weight)?;
                let share = Share::Tiles { rows: head_matmul::CHUNK_TOKENS, columns: matrix.inner };
                let launch = TransposedHeads {
                    matrix,
                    heads: weight.experts.as_ref().map_or(0, |e| e.len()),
                    x: self.input(node, 0)?,
                    out: self.output(node)?.shared(share),
                };
                self.needs.wide_elems = self.needs.wide_elems.max(launch.sums_elems());
                Box::new(launch)
            }
            Op::MatMul { .. } | Op::HeadMatMul { weight: _, transposed: false } | Op::ExpertMatMul { .. } => {
                let x = self.input(node, 0)?;
                return self.products(x, None, None, None, &[node], Then::Nothing);
            }
            Op::Embed { table, scale } => Box::new(Embed {
                table: self.matrix(table)?,
                scale: *scale,
                ids: self.input(node, 0)?,
                out: self.output(node)?,
            }),
            Op::RmsNorm { weight: _, eps: _, heads } => {
                let (weight, eps) = self.norm_weight(node)?;
                let (x, out) = (self.input(node, 0)?, self.output(node)?);
                let width = self.plan.graph.value(node.inputs[0]).shape.width().unwrap_or(0) / heads;
                Box::new(RmsNorm { x, out, weight, width, eps })
            }
            Op::LayerNorm { weight, bias, eps } => Box::new(LayerNorm {
                x: self.input(node, 0)?,
                out: self.output(node)?,
                weight: self.vector(*weight)?,
                bias: self.opt_vector(*bias)?,
                eps: *eps,
            }),
            Op::PositionScale(attrs) => {
                Box::new(PositionScale { x: self.input(node, 0)?, out: self.output(node)?, attrs: *attrs })
            }
            Op::MulHeads => Box::new(MulHeads {
                x: self.input(node, 0)?,
                factors: self.input(node, 1)?,
                out: self.output(node)?,
            }),
            Op::Rope { table, pairing, heads } => {
                let (x, out) = (self.input(node, 0)?, self.output(node)?);
                let (table, head_dim) = (table.index(), x.width() / heads);
                Box::new(Rope { x, out, table, pairing: *pairing, head_dim })
            }
            Op::KvWrite { key, value } => {
                let heads = Heads { head_dim: 1, norm: None, rope: None, out: None };
                let cache = self.cache(node, self.input(node, 0)?, heads, *key, *value)?;
                Box::new(KvWrite { q: None, cache })
            }
            Op::Attention(_) => return self.attention(node, self.input(node, 0)?, None),
            Op::AttentionScores(attrs) => Box::new(AttentionScores {
                attrs: attrs.clone(),
                q: self.input(node, 0)?,
                key: self.state_input(node, node.inputs[1])?,
                out: self.output(node)?,
            }),
            Op::AttentionSoftmax(attrs) => Box::new(AttentionSoftmax {
                attrs: attrs.clone(),
                sinks: self.opt_vector(attrs.sinks)?,
                scores: self.input(node, 0)?,
                mask: self.mask(node, attrs, 3)?,
                out: self.output(node)?.shared(Share::CachedRow),
            }),
            Op::Router(attrs) => {
                self.needs.per_tok = self.needs.per_tok.max(attrs.num_experts_per_tok);
                let Route { logits, attrs, bias, expert_scale, ids, weights } = self.route(node)?;
                let shared = |out: Output| out.shared(Share::Rows(router::CHUNK_TOKENS));
                let (ids, weights) = (ids.map(shared), weights.map(shared));
                Box::new(Route { logits, attrs, bias, expert_scale, ids, weights })
            }
            Op::IndexScores(attrs) => Box::new(IndexScores {
                attrs: *attrs,
                q: self.input(node, 0)?,
                w: self.input(node, 1)?,
                key: self.state_input(node, node.inputs[2])?,
                out: self.output(node)?,
            }),
            Op::IndexSelect { top_k, every } => Box::new(IndexSelect {
                top_k: *top_k,
                every: *every,
                scores: self.input(node, 0)?,
                out: self.output(node)?.shared(Share::CachedRow),
            }),
            Op::GivenExperts(attrs) => Box::new(GivenExperts {
                attrs: attrs.clone(),
                logits: self.input(node, 0)?,
                from: self.input(node, 1)?,
                table: self.ids_of_tokens(attrs)?,
                ids: self.maybe(node.outputs[0]),
                weights: self.maybe(node.outputs[1]),
            }),
            Op::GatedAct { activation } => Box::new(GatedAct {
                activation: *activation,
                gate: self.input(node, 0)?,
                up: self.input(node, 1)?,
                activated: self.maybe(node.outputs[0]),
                out: self.maybe(node.outputs[1]),
            }),
            Op::ExpertCombine => Box::new(ExpertCombine {
                y: self.input(node, 0)?,
                weights: self.input(node, 1)?,
                out: self.output(node)?,
            }),
            Op::Add | Op::Mul => Box::new(Elementwise {
                op: if matches!(node.op, Op::Add) { Binary::Add } else { Binary::Mul },
                a: self.input(node, 0)?,
                b: self.input(node, 1)?,
                out: self.output(node)?,
            }),
            Op::HyperGates(attrs) => return self.hyper_gates(node, attrs),
            Op::HyperConnect { streams } => return self.hyper_connect(node, *streams),
            Op::Compress(attrs) => return self.compress(node, attrs),
            Op::CompressedAttention(attrs) => return self.compressed_attention(node, attrs),
            Op::CausalConv(attrs) => return self.causal_conv(node, attrs),
            Op::DeltaGates { a, dt_bias, bound } => return self.delta_gates(node, *a, *dt_bias, *bound),
            Op::DeltaRule(attrs) => return self.delta_rule(node, attrs),
            Op::SsmScan(attrs) => return self.ssm_scan(node, attrs),
            Op::Pointwise { function } => {
                let share = Share::Tiles { rows: 1, columns: pointwise::CHUNK_ELEMS };
                let (x, out) = (self.input(node, 0)?, self.output(node)?.shared(share));
                Box::new(Pointwise { function: *function, x, out })
            }
            Op::Concat { heads } => Box::new(Concat {
                a: self.input(node, 0)?,
                b: self.input(node, 1)?,
                out: self.output(node)?,
                heads: *heads,
            }),
            Op::Slice { heads, start, len } => {
                let x = self.input(node, 0)?;
                let width = self.plan.graph.value(node.inputs[0]).shape.width().unwrap_or(0) / heads;
                Box::new(Slice { x, out: self.output(node)?, width, part: *start..start + len })
            }
            Op::GetRows => Box::new(GetRows {
                x: self.input(node, 0)?,
                ids: self.input(node, 1)?,
                out: self.output(node)?,
            }),
            Op::Tap { .. } => return Err(BackendError::mismatch(node.op.stem())),
        })
    }
}
