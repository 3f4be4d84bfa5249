//! The groups of nodes that the CPU runs as one launch.

use moe_run_graph::ir::pattern::{PatternStep, maybe, op};
use moe_run_graph::ir::{ActivationFn, AttentionAttrs, Graph, LaunchPattern, Node, Op, OpKind};

/// RMSNorm and the three products that read it.
pub const NORM_QKV: &str = "norm_qkv";
/// RMSNorm, gate and up of a dense layer, SwiGLU.
pub const NORM_GATE_UP: &str = "norm_gate_up";
/// RMSNorm and a product.
pub const NORM_MATMUL: &str = "norm_matmul";
/// A product and the residual.
pub const MATMUL_ADD: &str = "matmul_add";
/// Q/K norm, RoPE, cache.
pub const ROPE_KV: &str = "rope_kv";
/// Q/K norm, RoPE, cache and attention of one token.
pub const ROPE_ATTENTION: &str = "rope_attention";
/// The choice of experts, their gate and up, SwiGLU, of one token.
pub const ROUTE_GATE_UP: &str = "route_gate_up";
/// Experts' gate and up, SwiGLU.
pub const EXPERTS_GATE_UP: &str = "experts_gate_up";
/// Experts' down, weighted sum, residual.
pub const EXPERTS_DOWN: &str = "experts_down";
/// Rows of logits, final norm, lm_head.
pub const LM_HEAD: &str = "lm_head";

const ONE_TOKEN: &[LaunchPattern] = &[
    LaunchPattern { name: ROPE_ATTENTION, phases: &[ROPE_STEPS_ATTENTION], accepts: chained_attention },
    LaunchPattern {
        name: ROUTE_GATE_UP,
        phases: &[&[op("router"), op("expert_matmul"), op("expert_matmul"), op("gated_act")]],
        accepts: gated_pair,
    },
];

const ANY_COUNT: &[LaunchPattern] = &[
    LaunchPattern {
        name: NORM_QKV,
        phases: &[&[op("rms_norm"), op("matmul"), op("matmul"), op("matmul")]],
        accepts: share_norm,
    },
    LaunchPattern {
        name: NORM_GATE_UP,
        phases: &[&[op("rms_norm"), op("matmul"), op("matmul"), op("gated_act")]],
        accepts: |g, n| share_norm(g, &n[..3]) && gated_pair(g, n),
    },
    LaunchPattern {
        name: LM_HEAD,
        phases: &[&[op("get_rows"), op("rms_norm"), op("matmul")]],
        accepts: chained,
    },
    LaunchPattern { name: NORM_MATMUL, phases: &[&[op("rms_norm"), op("matmul")]], accepts: share_norm },
    LaunchPattern { name: MATMUL_ADD, phases: &[&[op("matmul"), op("add")]], accepts: adds_product },
    LaunchPattern { name: ROPE_KV, phases: &[ROPE_STEPS], accepts: turned_into_cache },
    LaunchPattern {
        name: EXPERTS_GATE_UP,
        phases: &[&[op("expert_matmul"), op("expert_matmul"), op("gated_act")]],
        accepts: gated_pair,
    },
    LaunchPattern {
        name: EXPERTS_DOWN,
        phases: &[&[op("expert_matmul"), op("expert_combine"), op("add")]],
        accepts: |g, n| n[1].inputs[0] == n[0].outputs[0] && adds_product(g, &n[1..]),
    },
];

const ROPE_STEPS: &[PatternStep] =
    &[maybe(op("rms_norm")), maybe(op("rms_norm")), op("rope"), op("rope"), op("kv_write")];
const ROPE_STEPS_ATTENTION: &[PatternStep] =
    &[maybe(op("rms_norm")), maybe(op("rms_norm")), op("rope"), op("rope"), op("kv_write"), op("attention")];

/// The patterns for steps of up to `tokens` tokens, best first.
pub fn patterns(tokens: usize) -> Vec<LaunchPattern> {
    let one: &[LaunchPattern] = if tokens == 1 { ONE_TOKEN } else { &[] };
    one.iter().chain(ANY_COUNT).copied().collect()
}

/// A norm of whole rows, one for each token or row of logits: its weight and eps go with the launch.
fn whole_norm(graph: &Graph, norm: &Node) -> bool {
    matches!(norm.op, Op::RmsNorm { weight: _, eps: _, heads: 1 })
        && graph.value(norm.inputs[0]).shape.0.len() == 2
}

/// Every product, of any slice with any bias and scale, reads the norm in front.
fn share_norm(graph: &Graph, nodes: &[&Node]) -> bool {
    let [norm, products @ ..] = nodes else { return false };
    let reads_norm = |n: &&Node| {
        matches!(n.op, Op::MatMul { weight: _, bias: _, scale: _ }) && n.inputs[0] == norm.outputs[0]
    };
    whole_norm(graph, norm) && products.iter().all(reads_norm)
}

/// Each node reads the one before it.
fn chained(graph: &Graph, nodes: &[&Node]) -> bool {
    let [pick, rest @ ..] = nodes else { return false };
    share_norm(graph, rest) && rest.first().is_some_and(|norm| norm.inputs[0] == pick.outputs[0])
}

/// The last node adds the product of the one before it, on either side, to something else of the same shape.
fn adds_product(graph: &Graph, nodes: &[&Node]) -> bool {
    let [product, add] = nodes else { return false };
    let product = product.outputs[0];
    let sides = add.inputs.iter().filter(|v| **v == product).count();
    sides == 1 && add.inputs.iter().all(|v| graph.value(*v).shape == graph.value(product).shape)
}

/// The last node gates the product two before it and lets through that just before it; both read the same input,
/// choice and widths alike; a router in front makes the choice.
fn gated_pair(graph: &Graph, nodes: &[&Node]) -> bool {
    let [.., gate, up, act] = nodes else { return false };
    let first = nodes[0];
    let routed = !matches!(first.op, Op::Router(_)) || gate.inputs.get(1) == first.outputs.first();
    let shape = |n: &Node| &graph.value(n.outputs[0]).shape;
    routed
        && gate.inputs == up.inputs
        && shape(gate) == shape(up)
        && act.inputs == [gate.outputs[0], up.outputs[0]]
        && matches!(act.op, Op::GatedAct { activation: ActivationFn::Silu })
}

/// Norms and rotations lead from q and k to `kv_write`: the second rotation feeds it, each norm its rotation.
fn turned_into_cache(_: &Graph, nodes: &[&Node]) -> bool {
    let of = |kind: OpKind| nodes.iter().copied().filter(|n| n.op.kind() == kind).collect::<Vec<_>>();
    let (norms, ropes, writes) = (of(OpKind::RmsNorm), of(OpKind::Rope), of(OpKind::KvWrite));
    let ([q, k], [write]) = (ropes.as_slice(), writes.as_slice()) else { return false };
    // Each head by itself: the launch norms the heads that it rotates.
    let norms_heads = |norm: &Node, rope: &Node| match (&norm.op, &rope.op) {
        (Op::RmsNorm { heads, .. }, Op::Rope { heads: rotated, .. }) => {
            heads == rotated && rope.inputs[0] == norm.outputs[0]
        }
        _ => false,
    };
    let normed = match norms.as_slice() {
        [] => true,
        [q_norm, k_norm] => norms_heads(q_norm, q) && norms_heads(k_norm, k),
        _ => false,
    };
    normed && write.inputs[0] == k.outputs[0] && q.outputs != k.outputs
}

/// As [`turned_into_cache`], and attention reads the turned q and what was written.
fn chained_attention(graph: &Graph, nodes: &[&Node]) -> bool {
    let [head @ .., attention] = nodes else { return false };
    let Op::Attention(attrs) = &attention.op else { return false };
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
    } = *attrs
    else {
        return false;
    };
    let mut turns = head.iter().filter(|n| n.op.kind() == OpKind::Rope);
    let (q, k) = (turns.next(), turns.next());
    let write = head.last();
    // A worker norms and turns the heads of one KV head: each by itself.
    let by_head = |rope: Option<&&Node>, wanted: usize| {
        let Some(rope) = rope else { return false };
        let norm = head.iter().find(|n| n.outputs[0] == rope.inputs[0]);
        let normed =
            norm.is_none_or(|n| matches!(n.op, Op::RmsNorm { weight: _, eps: _, heads } if heads == wanted));
        normed && matches!(rope.op, Op::Rope { table: _, pairing: _, heads } if heads == wanted)
    };
    turned_into_cache(graph, head)
        && by_head(q, num_attention_heads)
        && by_head(k, num_key_value_heads)
        && q.is_some_and(|q| attention.inputs[0] == q.outputs[0])
        && write.is_some_and(|w| attention.inputs[1..3] == w.outputs[..])
}
