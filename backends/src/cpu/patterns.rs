//! The groups of nodes that the CPU runs as one launch.

use moe_run_graph::ir::pattern::{PatternStep, maybe, op};
use moe_run_graph::ir::{ActivationFn, Graph, LaunchPattern, Node, Op};

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

/// Every product reads the norm in front, which is over whole rows.
fn share_norm(_: &Graph, nodes: &[&Node]) -> bool {
    let whole = matches!(nodes[0].op, Op::RmsNorm { heads: 1, .. });
    whole
        && nodes[1..].iter().all(|n| !matches!(n.op, Op::MatMul { .. }) || n.inputs[0] == nodes[0].outputs[0])
}

/// Each node reads the one before it.
fn chained(_: &Graph, nodes: &[&Node]) -> bool {
    nodes.windows(2).all(|w| w[1].inputs[0] == w[0].outputs[0])
        && nodes.iter().all(|n| !matches!(n.op, Op::RmsNorm { heads, .. } if heads != 1))
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
    let of = |stem: &str| nodes.iter().copied().filter(|n| n.op.stem() == stem).collect::<Vec<_>>();
    let (norms, ropes, writes) = (of("rms_norm"), of("rope"), of("kv_write"));
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
    let q = head.iter().find(|n| n.op.stem() == "rope");
    let write = head.last();
    turned_into_cache(graph, head)
        && q.is_some_and(|q| attention.inputs[0] == q.outputs[0])
        && write.is_some_and(|w| attention.inputs[1..3] == w.outputs[..])
}
