//! The groups of nodes that the CPU runs as one launch: which of graph/src/groups fit, and their nodes by role.

use moe_run_graph::groups::parts::{
    Attended, ExpertProduct, Gated, Norm, Picked, Product, Rotated, RowNorm, RowNormKind, Sum, Written,
};
use moe_run_graph::groups::{
    AttentionStep, DownCombine, ExpertsGateUp, FinalNormLmHead, GateUp, Group, MatMulResidual, NormQkv,
    NormRouter, Placed, Projection, RopeKv, RouteGateUp, group_of,
};
use moe_run_graph::ir::{ActivationFn, AttentionAttrs, Graph, LaunchPattern, Node, NodeId, ValueId};
use moe_run_runtime::error::BackendError;

/// RMSNorm and the products that read it.
pub const NORM_QKV: &str = NormQkv::NAME;
/// RMSNorm, or none, gate and up, SwiGLU.
pub const GATE_UP: &str = GateUp::NAME;
/// RMSNorm and the router's product.
pub const NORM_ROUTER: &str = NormRouter::NAME;
/// A product and the residual.
pub const MATMUL_RESIDUAL: &str = MatMulResidual::NAME;
/// Q/K norm, RoPE, cache.
pub const ROPE_KV: &str = RopeKv::NAME;
/// Q/K norm, RoPE, cache and attention of one token.
pub const ATTENTION_STEP: &str = AttentionStep::NAME;
/// The choice of experts, their gate and up, SwiGLU, of one token.
pub const ROUTE_GATE_UP: &str = RouteGateUp::NAME;
/// Experts' gate and up, SwiGLU.
pub const EXPERTS_GATE_UP: &str = ExpertsGateUp::NAME;
/// Experts' down, weighted sum, residual.
pub const DOWN_COMBINE: &str = DownCombine::NAME;
/// Rows of logits, final norm, lm_head.
pub const FINAL_NORM_LM_HEAD: &str = FinalNormLmHead::NAME;

/// The patterns for steps of up to `tokens` tokens, best first.
pub fn patterns(tokens: usize) -> Vec<LaunchPattern> {
    let mut all = Vec::new();
    if tokens == 1 {
        all.extend([pattern::<AttentionStep>(), pattern::<RouteGateUp>()]);
    }
    all.extend([
        pattern::<FinalNormLmHead>(),
        pattern::<NormQkv>(),
        pattern::<NormRouter>(),
        pattern::<GateUp>(),
        pattern::<DownCombine>(),
        pattern::<MatMulResidual>(),
        pattern::<RopeKv>(),
        pattern::<ExpertsGateUp>(),
    ]);
    all
}

fn pattern<G: Runs>() -> LaunchPattern {
    LaunchPattern::new::<G>(|graph, group| group.fits(graph))
}

/// The nodes of a launch by role, as each group's [`Runs::roles`] lists them; those of a single node as they are. An attribute
/// that a group does not know must not be dropped, whoever made the plan.
pub fn by_role<'g>(
    graph: &'g Graph,
    pattern: &'static str,
    nodes: Vec<&'g Node>,
) -> Result<Vec<&'g Node>, BackendError> {
    if nodes.len() == 1 {
        return Ok(nodes);
    }
    let of = match pattern {
        NORM_QKV => roles::<NormQkv>,
        NORM_ROUTER => roles::<NormRouter>,
        GATE_UP => roles::<GateUp>,
        FINAL_NORM_LM_HEAD => roles::<FinalNormLmHead>,
        MATMUL_RESIDUAL => roles::<MatMulResidual>,
        ROPE_KV => roles::<RopeKv>,
        ATTENTION_STEP => roles::<AttentionStep>,
        ROUTE_GATE_UP => roles::<RouteGateUp>,
        EXPERTS_GATE_UP => roles::<ExpertsGateUp>,
        DOWN_COMBINE => roles::<DownCombine>,
        _ => return Err(BackendError::mismatch(pattern)),
    };
    of(graph, &nodes).ok_or_else(|| BackendError::mismatch(pattern))
}

fn roles<'g, G: Runs>(graph: &'g Graph, nodes: &[&'g Node]) -> Option<Vec<&'g Node>> {
    let group = group_of::<G>(graph, nodes).filter(|group| group.fits(graph))?;
    group.roles().into_iter().map(|id| graph.node(id)).collect()
}

/// A group that the CPU may have a launch for.
trait Runs: Group {
    /// Whether it has.
    fn fits(&self, graph: &Graph) -> bool;

    /// The nodes in the order in which `compile` takes them.
    fn roles(&self) -> Vec<NodeId> {
        self.nodes()
    }
}

/// An RMSNorm of whole rows, one for each token or row of logits: its weight and eps go with the launch.
fn whole_norm(graph: &Graph, norm: &RowNorm) -> bool {
    let RowNorm { node: _, x, weight: _, eps: _, kind, y: _ } = norm;
    *kind == RowNormKind::Rms && graph.value(*x).shape.0.len() == 2
}

/// A product of any slice with any bias and scale.
fn any_product(product: &Product) -> bool {
    let Product { node: _, x: _, weight: _, bias: _, scale: _, y: _ } = product;
    true
}

/// The other operand of an addition has the product's shape.
fn adds_alike(graph: &Graph, add: &Sum, product: ValueId) -> bool {
    let Sum { node: _, other, y: _ } = add;
    graph.value(*other).shape == graph.value(product).shape
}

fn is_swiglu(act: &Gated) -> bool {
    let Gated { node: _, gate: _, up: _, activation, activated: _, y: _ } = act;
    *activation == ActivationFn::Silu
}

impl Runs for NormQkv {
    fn fits(&self, graph: &Graph) -> bool {
        let NormQkv { norm, projections } = self;
        let unbounded = |Projection { product, bound }: &Projection| any_product(product) && bound.is_none();
        whole_norm(graph, norm) && projections.iter().all(unbounded)
    }
}

impl Runs for NormRouter {
    fn fits(&self, graph: &Graph) -> bool {
        let NormRouter { post: None, norm, logits } = self else { return false };
        whole_norm(graph, norm) && logits.iter().all(any_product)
    }
}

impl Runs for FinalNormLmHead {
    fn fits(&self, graph: &Graph) -> bool {
        let FinalNormLmHead { picked: Picked { node: _, x: _, rows: _, y: _ }, norm, product } = self;
        whole_norm(graph, norm) && any_product(product)
    }
}

impl Runs for GateUp {
    fn fits(&self, graph: &Graph) -> bool {
        let GateUp { norm, gate, up, act } = self;
        let shape = |value: ValueId| &graph.value(value).shape;
        norm.as_ref().is_none_or(|norm| whole_norm(graph, norm))
            && any_product(gate)
            && any_product(up)
            && shape(gate.y) == shape(up.y)
            && is_swiglu(act)
    }
}

impl Runs for MatMulResidual {
    fn fits(&self, graph: &Graph) -> bool {
        let MatMulResidual { product, add } = self;
        any_product(product) && adds_alike(graph, add, product.y)
    }
}

/// Experts' products of one input, of any slice with any bias.
fn experts_gate_up(graph: &Graph, experts: &ExpertsGateUp) -> bool {
    let ExpertsGateUp { gate, up, act } = experts;
    let [gate_y, up_y] = [gate, up].map(|product| {
        let ExpertProduct { node: _, x: _, ids: _, weight: _, bias: _, y } = product;
        &graph.value(*y).shape
    });
    gate_y == up_y && is_swiglu(act)
}

impl Runs for ExpertsGateUp {
    fn fits(&self, graph: &Graph) -> bool {
        experts_gate_up(graph, self)
    }
}

impl Runs for RouteGateUp {
    fn fits(&self, graph: &Graph) -> bool {
        // Every choice that there is.
        let RouteGateUp { routing: _, experts } = self;
        experts_gate_up(graph, experts)
    }
}

impl Runs for DownCombine {
    fn fits(&self, graph: &Graph) -> bool {
        let DownCombine { down, combined, shared: None, add: Some(add) } = self else { return false };
        let ExpertProduct { node: _, x: _, ids: _, weight: _, bias: _, y: _ } = down;
        adds_alike(graph, add, combined.y)
    }
}

/// Queries and keys normed, each head by itself, or neither, then rotated.
fn placed_alike(graph: &Graph, q: &Placed, k: &Placed) -> bool {
    let rotates = |placed: &Placed| {
        let Placed { x: _, norm, rope: Some(rope), is_norm_last: false, y: _ } = placed else { return false };
        let Rotated { node: _, x: _, positions: _, table: _, pairing: _, heads, y: _ } = rope;
        let norms = |norm: &Norm| {
            let Norm { node: _, x: _, weight: _, eps: _, heads: normed, y: _ } = norm;
            normed == heads && norm.shared_weight(graph).is_some()
        };
        norm.as_ref().is_none_or(norms)
    };
    rotates(q) && rotates(k) && q.norm.is_some() == k.norm.is_some()
}

/// q before k, norms before rotations, the cache behind.
fn placed_roles(q: &Placed, k: &Placed, write: &Written) -> Vec<NodeId> {
    let norms = [q, k].into_iter().filter_map(|p| p.norm.as_ref().map(|n| n.node));
    let ropes = [q, k].into_iter().filter_map(|p| p.rope.as_ref().map(|r| r.node));
    norms.chain(ropes).chain([write.node]).collect()
}

impl Runs for RopeKv {
    fn fits(&self, graph: &Graph) -> bool {
        let RopeKv { q, k, write: Written { node: _, k: _, v: _, slots: _, key: _, value: _, states: _ } } =
            self;
        placed_alike(graph, q, k)
    }

    fn roles(&self) -> Vec<NodeId> {
        placed_roles(&self.q, &self.k, &self.write)
    }
}

impl Runs for AttentionStep {
    fn fits(&self, graph: &Graph) -> bool {
        let AttentionStep { q_part: None, q, k, v_norm: None, write, attention } = self else { return false };
        let Written { node: _, k: _, v: _, slots: _, key: _, value: _, states: _ } = write;
        let Attended { node: _, q: _, states: _, positions: _, sequence: _, attrs, y: _ } = attention;
        let AttentionAttrs {
            num_attention_heads,
            num_key_value_heads,
            head_dim: _,
            value_head_dim: _,
            scale: _,
            window: _,
            chunk: _,
            soft_cap: _,
            sinks: _,
            value_in_key: false,
            masked: false,
        } = attrs
        else {
            return false;
        };
        // A worker norms and rotates the heads of one KV head: each by itself.
        let by_head =
            |placed: &Placed, wanted: usize| placed.rope.as_ref().is_some_and(|r| r.heads == wanted);
        placed_alike(graph, q, k) && by_head(q, *num_attention_heads) && by_head(k, *num_key_value_heads)
    }

    fn roles(&self) -> Vec<NodeId> {
        let AttentionStep { q_part: _, q, k, v_norm: _, write, attention } = self;
        let mut all = placed_roles(q, k, write);
        all.push(attention.node);
        all
    }
}
