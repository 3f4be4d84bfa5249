//! One token's Q/K norm, RoPE, KvWrite and Attention.

use crate::emit::{Emitter, NONE, StateBinding};
use crate::ops::{Fused, emit_attention, max_query_rows};
use moe_run_graph::ir::pattern::{maybe, named, op};
use moe_run_graph::ir::{AttentionAttrs, Graph, LaunchPattern, Node, Op, RopePairing};
use moe_run_runtime::error::BackendError;

pub(super) const PATTERN: LaunchPattern = LaunchPattern {
    name: "attend",
    phases: &[&[
        maybe(named("rms_norm", "q_norm")),
        maybe(named("rms_norm", "k_norm")),
        named("rope", "q_rope"),
        named("rope", "k_rope"),
        op("kv_write"),
        op("attention"),
    ]],
    accepts: |graph, nodes| Parts::of(graph, nodes).is_some(),
};

/// The nodes by their part.
struct Parts<'n> {
    q_norm: Option<&'n Node>,
    k_norm: Option<&'n Node>,
    q_rope: &'n Node,
    k_rope: &'n Node,
    write: &'n Node,
    attention: &'n Node,
}

impl<'n> Parts<'n> {
    /// `None` where the nodes are not connected as the kernel computes them, or are of a size that it lacks.
    fn of(graph: &Graph, nodes: &[&'n Node]) -> Option<Parts<'n>> {
        let (q_norm, k_norm, rest) = match nodes {
            [q, k, rest @ ..] if rest.len() == 4 => (Some(*q), Some(*k), rest),
            rest if rest.len() == 4 => (None, None, rest),
            _ => return None,
        };
        let [q_rope, k_rope, write, attention] = *rest else { return None };
        let Op::Attention(attrs) = &attention.op else { return None };
        let AttentionAttrs {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            value_head_dim,
            scale: _,
            window: _,
            chunk: None,
            soft_cap: _,
            sinks: _,
            value_in_key: false,
        } = *attrs
        else {
            return None;
        };
        let (
            Op::Rope { table: a, pairing: pa, heads: q_heads },
            Op::Rope { table: b, pairing: pb, heads: k_heads },
        ) = (&q_rope.op, &k_rope.op)
        else {
            return None;
        };
        // Norms of each head by itself.
        let heads = |norm: Option<&Node>, wanted: usize| {
            norm.is_none_or(
                |n| matches!(n.op, Op::RmsNorm { weight: Some(_), eps: _, heads } if heads == wanted),
            )
        };
        let follows = |norm: Option<&Node>, rope: &Node| norm.is_none_or(|n| rope.inputs[0] == n.outputs[0]);
        let connected = follows(q_norm, q_rope)
            && follows(k_norm, k_rope)
            && write.inputs[0] == k_rope.outputs[0]
            && attention.inputs[0] == q_rope.outputs[0]
            && attention.inputs[1..3] == write.outputs[..]
            && (a, pa) == (b, pb)
            // One position for both rotations and the mask.
            && [q_rope, k_rope].iter().all(|rope| rope.inputs[1] == attention.inputs[3]);
        let fits = heads(q_norm, num_attention_heads)
            && heads(k_norm, num_key_value_heads)
            && (*q_heads, *k_heads) == (num_attention_heads, num_key_value_heads)
            && attrs.group_size() <= max_query_rows(attrs)
            // A head of the cache is whole units of two Q8_0 blocks.
            && head_dim % 64 == 0
            && value_head_dim % 64 == 0
            && graph.value(q_rope.inputs[1]).shape.0.len() == 1;
        (connected && fits).then_some(Parts { q_norm, k_norm, q_rope, k_rope, write, attention })
    }
}

pub(super) fn emit(e: &mut Emitter<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let plan = e.plan;
    let defect = || BackendError::mismatch(PATTERN.name);
    let Some(parts) = Parts::of(&plan.graph, nodes) else { return Err(defect()) };
    let (Op::Attention(attrs), Op::Rope { table, pairing, .. }, Op::KvWrite { key, value: Some(value) }) =
        (&parts.attention.op, &parts.q_rope.op, &parts.write.op)
    else {
        return Err(defect());
    };
    let norm = |e: &Emitter<'_>, node: Option<&Node>| match node.map(|n| &n.op) {
        None => Ok((NONE, 0.0)),
        Some(Op::RmsNorm { weight: Some(weight), eps, heads: _ }) => Ok((e.small(Some(*weight))?, *eps)),
        Some(_) => Err(defect()),
    };
    let ((q_norm, q_eps), (k_norm, k_eps)) = (norm(e, parts.q_norm)?, norm(e, parts.k_norm)?);
    let normed =
        |e: &Emitter<'_>, node: Option<&Node>| node.and_then(|n| e.stored(n.outputs[0])).unwrap_or(NONE);
    let (pairs, angles) = e.angles(parts.q_rope, *table)?;
    let q = e.at(parts.q_norm.unwrap_or(parts.q_rope).inputs[0])?;
    let k = e.at(parts.k_norm.unwrap_or(parts.k_rope).inputs[0])?;
    let params = vec![
        ("k", k.into()),
        ("v", e.at(parts.write.inputs[1])?.into()),
        ("slots", e.at(parts.write.inputs[2])?.into()),
        ("capacity", (plan.max_sizes.cached as u32).into()),
        ("q_norm", q_norm.into()),
        ("k_norm", k_norm.into()),
        ("q_eps", q_eps.into()),
        ("k_eps", k_eps.into()),
        ("table", angles.into()),
        ("pairs", pairs.into()),
        ("interleaved", u32::from(*pairing == RopePairing::Interleaved).into()),
        ("q_normed", normed(e, parts.q_norm).into()),
        ("k_normed", normed(e, parts.k_norm).into()),
        ("q_turned", e.stored(parts.q_rope.outputs[0]).unwrap_or(NONE).into()),
        ("k_turned", e.output(parts.k_rope.outputs[0]).into()),
    ];
    let states = StateBinding::Update(vec![*key, *value]);
    emit_attention(e, parts.attention, attrs, Some(Fused { q, params, states }))
}
