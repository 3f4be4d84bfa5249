//! The decode step's grouped launches: six a layer, one kernel each.
//!
//! 1. `norm_matmul`: RMSNorm + q, k, v. 2. `attention_step`: Q/K norm + RoPE + KvWrite + Attention. 3. `matmul_residual`:
//!    o_proj + residual. 4. `norm_matmul`: RMSNorm + router. 5. `route_gate_up`: top-k + gate + up + SwiGLU. 6.
//!    `down_combine`: down + weighted sum + residual. A dense layer has norm + gate + up, SwiGLU, down + residual in the
//!    place of 4 to 6. The final norm goes with lm_head.
//!
//! An inner value that a tap wants is written from the same registers that feed the rest. Prefill has no groups.

use super::driver::Param;
use super::ops::{self, Emit, attention, int, matmul, router};
use moe_run_graph::ir::pattern::{PatternStep, maybe, named, op};
use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, Dim, Graph, LaunchPattern, Node, Op, RopePairing, RouterAttrs, ValueId,
};
use moe_run_graph::quant::{ActProfile, Format};
use moe_run_runtime::error::BackendError;

const NORM_QKV: &str = "norm_qkv";
const ATTENTION_STEP: &str = "attention_step";
const MATMUL_RESIDUAL: &str = "matmul_residual";
const NORM_ROUTER: &str = "norm_router";
const ROUTE_GATE_UP: &str = "route_gate_up";
const DOWN_COMBINE: &str = "down_combine";
const NORM_GATE_UP: &str = "norm_gate_up";
const FINAL_NORM_LM_HEAD: &str = "final_norm_lm_head";

/// The widest row that `norm_matmul` keeps in shared memory as f32 and in 8 bits: 5.125 bytes an element of 48 KiB.
const MAX_NORM_ELEMS: usize = 8192;
/// The matrices that `norm_matmul` takes.
const MAX_MATRICES: usize = 3;
/// The most elements that the others keep in 8 bits.
const MAX_STAGED_ELEMS: usize = 32768;
/// The widest head that `attention_step` has shared memory for.
const MAX_HEAD_DIM: usize = 256;
/// Blocks a multiprocessor: more would repeat a block's preparation, fewer would leave warps idle.
const BLOCKS_PER_MULTIPROCESSOR: usize = 8;

/// Up to so many rows a multiprocessor, whole blocks take rows together.
const SHARED_ROWS_PER_MULTIPROCESSOR: usize = 4;

const fn group(
    name: &'static str,
    phases: &'static [&'static [PatternStep]],
    accepts: fn(&Graph, &[&Node]) -> bool,
) -> LaunchPattern {
    LaunchPattern { name, phases, accepts }
}

/// Best first.
const GROUPS: &[LaunchPattern] = &[
    group(
        NORM_QKV,
        &[&[op("rms_norm"), named("matmul", "q_proj"), named("matmul", "k_proj"), named("matmul", "v_proj")]],
        norm_and_matmuls,
    ),
    group(
        ATTENTION_STEP,
        &[&[
            maybe(named("rms_norm", "q_norm")),
            maybe(named("rms_norm", "k_norm")),
            op("rope"),
            op("rope"),
            op("kv_write"),
            op("attention"),
        ]],
        attention_step_fits,
    ),
    group(MATMUL_RESIDUAL, &[&[op("matmul"), op("add")]], matmul_and_add),
    group(NORM_ROUTER, &[&[op("rms_norm"), named("matmul", "router")]], norm_and_matmuls),
    group(
        ROUTE_GATE_UP,
        &[&[op("router"), op("expert_matmul"), op("expert_matmul"), op("gated_act")]],
        route_gate_up_fits,
    ),
    group(DOWN_COMBINE, &[&[op("expert_matmul"), op("expert_combine"), op("add")]], down_combine_fits),
    group(
        NORM_GATE_UP,
        &[&[op("rms_norm"), named("matmul", "gate_proj"), named("matmul", "up_proj")]],
        norm_and_matmuls,
    ),
    group(FINAL_NORM_LM_HEAD, &[&[op("get_rows"), op("rms_norm"), op("matmul")]], final_norm_fits),
];

/// The groups for steps of up to `tokens` tokens, best first. They know f32 and 8-bit activations; f16 runs op by op.
pub(super) fn patterns(tokens: usize, profile: ActProfile) -> Vec<LaunchPattern> {
    if tokens == 1 && profile != ActProfile::F16 { GROUPS.to_vec() } else { Vec::new() }
}

/// A matmul without bias and scale, of any rows, of the value `x`.
fn plain_matmul(node: &Node, x: ValueId) -> bool {
    matches!(node.op, Op::MatMul { weight: _, bias: None, scale: None }) && node.inputs[0] == x
}

/// A norm of whole rows: the weight and eps go with the launch.
fn whole_norm(node: &Node) -> bool {
    matches!(node.op, Op::RmsNorm { weight: Some(_), eps: _, heads: 1 })
}

/// Experts' matmul without bias, of any rows of any experts.
fn plain_experts(node: &Node) -> bool {
    matches!(node.op, Op::ExpertMatMul { weight: _, bias: None })
}

/// One row for a token: what a launch without a grid over rows computes.
fn one_row(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).shape.0[..], [Dim::Tokens, Dim::Fixed(_)])
}

fn width(graph: &Graph, value: ValueId) -> usize {
    graph.value(value).shape.width().unwrap_or(usize::MAX)
}

fn norm_and_matmuls(graph: &Graph, nodes: &[&Node]) -> bool {
    let [norm, matmuls @ ..] = nodes else { return false };
    whole_norm(norm)
        && width(graph, norm.inputs[0]) <= MAX_NORM_ELEMS
        && width(graph, norm.inputs[0]).is_multiple_of(4)
        && matmuls.iter().all(|m| plain_matmul(m, norm.outputs[0]))
}

fn final_norm_fits(graph: &Graph, nodes: &[&Node]) -> bool {
    let [rows, rest @ ..] = nodes else { return false };
    rest.first().is_some_and(|norm| norm.inputs[0] == rows.outputs[0]) && norm_and_matmuls(graph, rest)
}

fn matmul_and_add(graph: &Graph, nodes: &[&Node]) -> bool {
    let [product, add] = nodes else { return false };
    plain_matmul(product, product.inputs[0])
        && one_row(graph, product.inputs[0])
        && width(graph, product.inputs[0]) <= MAX_STAGED_ELEMS
        && residual(add, product.outputs[0]).is_some()
}

/// The other operand of an addition.
fn residual(add: &Node, value: ValueId) -> Option<ValueId> {
    match add.inputs[..] {
        [a, b] if b == value && a != value => Some(a),
        [a, b] if a == value && b != value => Some(b),
        _ => None,
    }
}

/// The nodes of [`ATTENTION_STEP`], told apart.
struct AttentionStep<'a> {
    q_norm: Option<&'a Node>,
    k_norm: Option<&'a Node>,
    q_rope: &'a Node,
    k_rope: &'a Node,
    write: &'a Node,
    attention: &'a Node,
}

impl<'a> AttentionStep<'a> {
    fn of(nodes: &[&'a Node]) -> Option<AttentionStep<'a>> {
        let (norms, rest) = nodes.split_at(nodes.len().checked_sub(4)?);
        let [q_rope, k_rope, write, attention] = *rest else { return None };
        let (q_norm, k_norm) = match *norms {
            [] => (None, None),
            [q, k] => (Some(q), Some(k)),
            _ => return None,
        };
        Some(AttentionStep { q_norm, k_norm, q_rope, k_rope, write, attention })
    }

    /// q and k as the matmuls made them.
    fn raw(&self) -> (ValueId, ValueId) {
        let input = |norm: Option<&Node>, rope: &Node| norm.map_or(rope.inputs[0], |n| n.inputs[0]);
        (input(self.q_norm, self.q_rope), input(self.k_norm, self.k_rope))
    }
}

fn attention_step_fits(graph: &Graph, nodes: &[&Node]) -> bool {
    let Some(s) = AttentionStep::of(nodes) else { return false };
    let Op::Attention(a) = &s.attention.op else { return false };
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
    } = *a
    else {
        return false;
    };
    let eps = |node: Option<&Node>| {
        let Op::RmsNorm { weight: _, eps, heads: _ } = node?.op else { return None };
        Some(eps)
    };
    // Norms of each head by itself.
    let norm_fits = |norm: Option<&Node>, rope: &Node, wanted: usize| {
        norm.is_none_or(|n| {
            rope.inputs[0] == n.outputs[0]
                && matches!(n.op, Op::RmsNorm { weight: Some(_), eps: _, heads } if heads == wanted)
        })
    };
    let (
        Op::Rope { table: q_table, pairing: q_pairing, heads: q_heads },
        Op::Rope { table, pairing, heads: k_heads },
    ) = (&s.q_rope.op, &s.k_rope.op)
    else {
        return false;
    };
    eps(s.q_norm) == eps(s.k_norm)
        && norm_fits(s.q_norm, s.q_rope, num_attention_heads)
        && norm_fits(s.k_norm, s.k_rope, num_key_value_heads)
        && (q_table, q_pairing) == (table, pairing)
        && (*q_heads, *k_heads) == (num_attention_heads, num_key_value_heads)
        // One position for both rotations and the mask.
        && [s.q_rope, s.k_rope].iter().all(|rope| rope.inputs[1] == s.attention.inputs[3])
        && s.write.inputs[0] == s.k_rope.outputs[0]
        && s.attention.inputs[0] == s.q_rope.outputs[0]
        && s.attention.inputs[1..3] == s.write.outputs[..]
        && head_dim % 32 == 0
        && head_dim <= MAX_HEAD_DIM
        && value_head_dim % 32 == 0
        && ops::supports(graph, s.attention).is_ok()
}

fn route_gate_up_fits(graph: &Graph, nodes: &[&Node]) -> bool {
    let [router, gate, up, act] = nodes else { return false };
    let plain = |n: &Node| plain_experts(n) && n.inputs[1] == router.outputs[0];
    // Every attribute of the choice goes with the launch.
    let Op::Router(RouterAttrs {
        num_experts: _,
        num_experts_per_tok: _,
        gate: _,
        norm_topk_prob: _,
        scale: _,
        selection_bias: _,
        groups: None,
        expert_scale: None,
    }) = &router.op
    else {
        return false;
    };
    ops::supports(graph, router).is_ok()
        && plain(gate)
        && plain(up)
        && gate.inputs[0] == up.inputs[0]
        && graph.value(gate.inputs[0]).shape.0.len() == 2
        && width(graph, gate.inputs[0]) <= MAX_STAGED_ELEMS
        && width(graph, gate.outputs[0]) == width(graph, up.outputs[0])
        && act.inputs[..] == [gate.outputs[0], up.outputs[0]]
        && matches!(act.op, Op::GatedAct { activation: ActivationFn::Silu })
}

fn down_combine_fits(graph: &Graph, nodes: &[&Node]) -> bool {
    let [down, combine, add] = nodes else { return false };
    plain_experts(down)
        && graph.value(down.inputs[0]).shape.0.len() == 3
        && graph.value(down.inputs[0]).shape.fixed_elems() <= MAX_STAGED_ELEMS
        && combine.inputs[0] == down.outputs[0]
        && residual(add, combine.outputs[0]).is_some()
}

/// The kernel of a group, for dumps.
pub(super) fn kernel_name(pattern: &str) -> Option<&'static str> {
    match pattern {
        NORM_QKV | NORM_ROUTER | NORM_GATE_UP | FINAL_NORM_LM_HEAD => Some("norm_matmul"),
        ATTENTION_STEP => Some(ATTENTION_STEP),
        MATMUL_RESIDUAL => Some(MATMUL_RESIDUAL),
        ROUTE_GATE_UP => Some(ROUTE_GATE_UP),
        DOWN_COMBINE => Some(DOWN_COMBINE),
        _ => None,
    }
}

/// Appends the launch of a group; its nodes are those that the pattern matched.
pub(super) fn emit(emit: &mut Emit<'_>, pattern: &str, nodes: &[&Node]) -> Result<(), BackendError> {
    match (pattern, nodes) {
        (NORM_QKV | NORM_ROUTER | NORM_GATE_UP, [norm, matmuls @ ..]) => {
            norm_matmul(emit, None, norm, matmuls)
        }
        (FINAL_NORM_LM_HEAD, [rows, norm, matmuls @ ..]) => norm_matmul(emit, Some(rows), norm, matmuls),
        (ATTENTION_STEP, nodes) => attention_step(emit, nodes),
        (MATMUL_RESIDUAL, [product, add]) => matmul_residual(emit, product, add),
        (ROUTE_GATE_UP, [router, gate, up, act]) => route_gate_up(emit, router, gate, up, act),
        (DOWN_COMBINE, [down, combine, add]) => down_combine(emit, down, combine, add),
        _ => Err(BackendError::mismatch(pattern)),
    }
}

/// Forms of a row of activations that a block keeps: `Stage` in kernels/common/staged.cuh.
const STAGE_Q8: i32 = 1;
const STAGE_F32: i32 = 2;

/// The form that a format takes under the executable's profile.
fn stage(emit: &Emit<'_>, format: Format) -> i32 {
    let q8 = matches!(emit.profile, ActProfile::Q8 { .. }) && format.is_quantized();
    if q8 { STAGE_Q8 } else { STAGE_F32 }
}

/// Blocks for `rows` warps' worth of work.
fn blocks(emit: &Emit<'_>, rows: usize) -> usize {
    let most = emit.scratch.multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR;
    rows.div_ceil(matmul::ROWS_PER_BLOCK).min(most)
}

/// Shared bytes of `n` elements in 8 bits, where some matrix takes them.
fn staged_bytes(n: usize, stage: i32) -> usize {
    if stage & STAGE_Q8 != 0 { n + n / 8 } else { 0 }
}

fn norm_matmul(
    emit: &mut Emit<'_>,
    rows: Option<&Node>,
    norm: &Node,
    matmuls: &[&Node],
) -> Result<(), BackendError> {
    let Op::RmsNorm { weight: Some(weight), eps, heads: 1 } = norm.op else {
        return Err(BackendError::mismatch(norm.name));
    };
    if matmuls.len() > MAX_MATRICES {
        return Err(BackendError::mismatch(norm.name));
    }
    let n = emit.width(norm.inputs[0])?;
    let mut forms = 0;
    let mut all_rows = 0;
    let mut matrices = Vec::with_capacity(5 * MAX_MATRICES);
    for node in matmuls {
        let Op::MatMul { weight, bias: None, scale: None } = &node.op else {
            return Err(BackendError::mismatch(node.name));
        };
        let matrix = emit.weights.matrix(emit.graph, weight);
        forms |= stage(emit, matrix.format);
        all_rows += matrix.rows;
        matrices.extend([
            matrix.code(),
            matrix.data,
            Param::U64(matrix.row_bytes),
            emit.value(node.outputs[0])?,
            int(matrix.rows),
        ]);
    }
    while matrices.len() < 5 * MAX_MATRICES {
        matrices.extend([int(0), Param::NULL, Param::U64(0), Param::NULL, int(0)]);
    }
    let (x, row_index) = match rows {
        Some(rows) => (emit.value(rows.inputs[0])?, emit.value(rows.inputs[1])?),
        None => (emit.value(norm.inputs[0])?, Param::NULL),
    };
    let outputs = emit.rows(norm.outputs[0]);
    // A warp a row would leave most multiprocessors without one.
    let shared_rows = all_rows <= SHARED_ROWS_PER_MULTIPROCESSOR * emit.scratch.multiprocessors as usize;
    let mut params = vec![
        x,
        row_index,
        emit.weights.vector(weight),
        Param::F32(eps),
        emit.opt_value(norm.outputs[0]),
        int(n),
        Param::I32(forms),
        int(usize::from(shared_rows)),
    ];
    params.append(&mut matrices);
    let grid = [if shared_rows { all_rows } else { blocks(emit, all_rows) }, outputs, 1];
    let floats = if forms & STAGE_F32 != 0 { 4 * n } else { 0 };
    emit.push("norm_matmul", grid, matmul::THREADS, staged_bytes(n, forms) + floats, params);
    Ok(())
}

fn attention_step(emit: &mut Emit<'_>, nodes: &[&Node]) -> Result<(), BackendError> {
    let s = AttentionStep::of(nodes).ok_or_else(|| BackendError::mismatch(ATTENTION_STEP))?;
    let (Op::Attention(a), Op::Rope { table, pairing, .. }) = (&s.attention.op, &s.q_rope.op) else {
        return Err(BackendError::mismatch(ATTENTION_STEP));
    };
    let norm = |node: Option<&Node>| match node.map(|n| &n.op) {
        None => Ok((Param::NULL, 0.0)),
        Some(Op::RmsNorm { weight: Some(weight), eps, heads: _ }) => Ok((emit.weights.vector(*weight), *eps)),
        Some(_) => Err(BackendError::mismatch(ATTENTION_STEP)),
    };
    let ((q_norm, eps), (k_norm, _)) = (norm(s.q_norm)?, norm(s.k_norm)?);
    let tap = |node: Option<&Node>| node.map_or(Param::NULL, |n| emit.opt_value(n.outputs[0]));
    let (q, k) = s.raw();
    let (blocks, splits) = ops::split_geometry(a, 1, emit.scratch.multiprocessors);
    let tiles = attention::fits_tiles(emit, a);
    let params = vec![
        emit.value(q)?,
        emit.value(k)?,
        emit.value(s.write.inputs[1])?,
        q_norm,
        k_norm,
        Param::F32(eps),
        emit.rope_tables[table.index()].param(),
        int(emit.graph.rope_tables[table.index()].dims),
        int(usize::from(*pairing == RopePairing::Interleaved)),
        int(emit.positions_capacity),
        emit.value(s.attention.inputs[3])?,
        emit.value(s.write.inputs[2])?,
        tap(s.q_norm),
        tap(s.k_norm),
        emit.opt_value(s.q_rope.outputs[0]),
        emit.opt_value(s.k_rope.outputs[0]),
        emit.cache(s.attention.inputs[1])?,
        emit.cache(s.attention.inputs[2])?,
        emit.weights.opt_vector(a.sinks),
        emit.scratch.partial.param(),
        emit.scratch.partial_state.param(),
        emit.scratch.arrived.param(),
        emit.value(s.attention.outputs[0])?,
        emit.kv_code(),
        int(a.num_attention_heads),
        int(a.num_key_value_heads),
        int(a.head_dim),
        int(a.value_head_dim),
        Param::F32(a.scale),
        attention::window(a),
        attention::soft_cap(a),
        int(splits),
        int(usize::from(tiles)),
    ];
    let mut shared = attention::shared_bytes(a) + 4 * (attention::HEADS_PER_BLOCK + 1) * a.head_dim;
    if tiles {
        // Four warps' sums and states.
        shared += 4 * 4 * attention::HEADS_PER_BLOCK * (a.head_dim + 2);
    }
    emit.push("attention_step", [blocks, splits, 1], attention::TILE as u32, shared, params);
    Ok(())
}

fn matmul_residual(emit: &mut Emit<'_>, product: &Node, add: &Node) -> Result<(), BackendError> {
    let (Op::MatMul { weight, bias: None, scale: None }, Some(other)) =
        (&product.op, residual(add, product.outputs[0]))
    else {
        return Err(BackendError::mismatch(MATMUL_RESIDUAL));
    };
    let matrix = emit.weights.matrix(emit.graph, weight);
    let forms = stage(emit, matrix.format);
    let params = vec![
        emit.value(product.inputs[0])?,
        matrix.code(),
        matrix.data,
        Param::U64(matrix.row_bytes),
        emit.value(other)?,
        emit.opt_value(product.outputs[0]),
        emit.value(add.outputs[0])?,
        int(matrix.inner),
        int(matrix.rows),
        Param::I32(forms),
    ];
    let grid = [blocks(emit, matrix.rows), 1, 1];
    emit.push("matmul_residual", grid, matmul::THREADS, staged_bytes(matrix.inner, forms), params);
    Ok(())
}

/// The expert matrix that reads a value next, and the bytes of one of its experts: its weights are fetched ahead.
fn next_experts(emit: &Emit<'_>, value: ValueId) -> (Param, u64) {
    let next = emit.graph.nodes.iter().find_map(|n| {
        let Op::ExpertMatMul { weight, bias: _ } = &n.op else { return None };
        (n.inputs[0] == value).then_some(weight)
    });
    next.map_or((Param::NULL, 0), |weight| {
        let matrix = emit.weights.matrix(emit.graph, weight);
        (matrix.data, matrix.expert_bytes)
    })
}

fn route_gate_up(
    emit: &mut Emit<'_>,
    router: &Node,
    gate: &Node,
    up: &Node,
    act: &Node,
) -> Result<(), BackendError> {
    let (
        Op::Router(r),
        Op::ExpertMatMul { weight: gate_weight, bias: None },
        Op::ExpertMatMul { weight: up_weight, bias: None },
        Op::GatedAct { activation: ActivationFn::Silu },
    ) = (&router.op, &gate.op, &up.op, &act.op)
    else {
        return Err(BackendError::mismatch(ROUTE_GATE_UP));
    };
    let gate_matrix = emit.weights.matrix(emit.graph, gate_weight);
    let up_matrix = emit.weights.matrix(emit.graph, up_weight);
    let forms = stage(emit, gate_matrix.format) | stage(emit, up_matrix.format);
    let (next, next_bytes) = next_experts(emit, act.outputs[1]);
    let params = vec![
        emit.value(router.inputs[0])?,
        emit.weights.opt_vector(r.selection_bias),
        emit.value(router.outputs[0])?,
        emit.value(router.outputs[1])?,
        int(r.num_experts),
        int(r.num_experts_per_tok),
        router::gate_code(r.gate),
        int(usize::from(r.norm_topk_prob)),
        Param::F32(r.scale),
        emit.value(gate.inputs[0])?,
        int(gate_matrix.inner),
        int(gate_matrix.rows),
        Param::I32(forms),
        gate_matrix.code(),
        gate_matrix.data,
        Param::U64(gate_matrix.row_bytes),
        Param::U64(gate_matrix.expert_bytes),
        up_matrix.code(),
        up_matrix.data,
        Param::U64(up_matrix.row_bytes),
        Param::U64(up_matrix.expert_bytes),
        emit.opt_value(gate.outputs[0]),
        emit.opt_value(up.outputs[0]),
        emit.opt_value(act.outputs[0]),
        emit.value(act.outputs[1])?,
        next,
        Param::U64(next_bytes),
    ];
    let grid = [blocks(emit, r.num_experts_per_tok * gate_matrix.rows), 1, 1];
    emit.push("route_gate_up", grid, matmul::THREADS, staged_bytes(gate_matrix.inner, forms), params);
    Ok(())
}

fn down_combine(emit: &mut Emit<'_>, down: &Node, combine: &Node, add: &Node) -> Result<(), BackendError> {
    let (Op::ExpertMatMul { weight, bias: None }, Some(other)) =
        (&down.op, residual(add, combine.outputs[0]))
    else {
        return Err(BackendError::mismatch(DOWN_COMBINE));
    };
    let matrix = emit.weights.matrix(emit.graph, weight);
    let per_tok = emit.elems(down.inputs[1]);
    let forms = stage(emit, matrix.format);
    // Whole rows a lane group: 8 lanes read a 256-block's chunks together; a warp has four experts under way then.
    let width = match matrix.inner {
        0..=1024 if per_tok > 2 => 8,
        0..=2048 if per_tok > 1 => 16,
        _ => 32,
    };
    let params = vec![
        emit.value(down.inputs[0])?,
        emit.value(down.inputs[1])?,
        emit.value(combine.inputs[1])?,
        matrix.code(),
        matrix.data,
        Param::U64(matrix.row_bytes),
        Param::U64(matrix.expert_bytes),
        emit.value(other)?,
        emit.opt_value(down.outputs[0]),
        emit.opt_value(combine.outputs[0]),
        emit.value(add.outputs[0])?,
        int(matrix.inner),
        int(matrix.rows),
        int(per_tok),
        Param::I32(forms),
        int(width),
    ];
    let grid = [blocks(emit, matrix.rows), 1, 1];
    emit.push("down_combine", grid, matmul::THREADS, staged_bytes(per_tok * matrix.inner, forms), params);
    Ok(())
}
