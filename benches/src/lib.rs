//! Shared helpers of the benches: graphs of one op over weights that no cache holds, and timing.
//!
//! An op is benched on the production path: a graph in which it stands many times, each time with weights (or a cache
//! of keys and values) of its own, so that none is still in a processor's cache when its turn comes again. Weights and
//! tokens are random; nothing is timed on zeros, and the outputs of every timed size are checked to be finite.

use moe_run_backends::{
    Backend, BackendError, CompileOptions, Observer, StepInput, ValueAccess,
    executable::{StepSequence, StepTokens, blocks_in_order},
    registry,
};
use moe_run_graph::cost::{Cost, step_cost};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{
    AttentionAttrs, GateKind, Graph, LayerIdx, Lifetime, Op, RouterAttrs, StateRole, StepSizes, ValueId,
    WeightHome, WeightId, WeightSlice,
};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_graph::quant::Format;
use moe_run_graph::synth::{Random, fill};
use std::collections::HashMap;
use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What goes wrong in a bench ends it.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Rows of the embedding tables that feed the ops.
const VOCAB: usize = 256;

/// Timed runs of each bench; the median counts.
const RUNS: usize = 7;

/// The arguments of a bench.
pub struct Arguments {
    /// `--backend`, the processor where absent.
    pub backend: Box<dyn Backend>,
    /// `--threads`.
    pub threads: Option<NonZeroUsize>,
    /// Only benches whose name holds it.
    pub filter: String,
}

impl Arguments {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// An argument or a backend that is not known.
    pub fn parse() -> Outcome<Arguments> {
        let (mut backend, mut threads, mut filter) = ("cpu".to_owned(), None, String::new());
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {} // what `cargo bench` adds
                "--backend" => backend = args.next().ok_or("--backend: which?")?,
                "--threads" => threads = Some(args.next().ok_or("--threads: how many?")?.parse()?),
                flag if flag.starts_with('-') => return Err(format!("unknown argument {flag}").into()),
                _ => filter = arg,
            }
        }
        Ok(Arguments { backend: registry::by_name(&backend)?, threads, filter })
    }
}

/// The middle value of an odd number of values; sorts them.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A graph of one op, many times over.
pub struct OpBench {
    graph: Graph,
    weights: HashMap<String, Vec<u8>>,
    random: Random,
    copies: usize,
}

/// What a bench found, for one of the op's copies.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The median of the runs.
    pub each: Duration,
    /// Weights, states and operations by the plan.
    pub cost: Cost,
}

impl Timing {
    /// Weights and states over time, in 10⁹ bytes a second.
    #[must_use]
    pub fn gb_per_second(&self) -> f64 {
        self.cost.streamed_bytes() as f64 / self.each.as_secs_f64() / 1e9
    }

    /// 10⁹ operations a second.
    #[must_use]
    pub fn gflops(&self) -> f64 {
        self.cost.flops as f64 / self.each.as_secs_f64() / 1e9
    }
}

impl OpBench {
    fn new() -> OpBench {
        OpBench { graph: Graph::new(), weights: HashMap::new(), random: Random::new(&[1]), copies: 0 }
    }

    fn weight(&mut self, shape: &[usize], format: Format) -> Outcome<WeightId> {
        let (cols, rows) = shape.split_last().ok_or("a weight has axes")?;
        let row_bytes = format.row_bytes(*cols).ok_or("a row is a multiple of the format's block")?;
        let mut bytes = vec![0; row_bytes * rows.iter().product::<usize>()];
        fill(format, (*cols as f32).sqrt().recip(), &mut self.random, &mut bytes);
        let name = format!("weight {}", self.weights.len());
        self.weights.insert(name.clone(), bytes);
        Ok(self.graph.add_weight(name, shape.to_vec(), format))
    }

    /// Random rows of the given width, one a token.
    fn rows(&mut self, width: usize) -> Outcome<ValueId> {
        let tensor = self.weight(&[VOCAB, width], Format::F32)?;
        let table = WeightSlice { tensor, rows: 0..VOCAB, experts: None, home: WeightHome::Device };
        let tokens = self.graph.inputs.tokens;
        Ok(self.graph.push(None, "embed_tokens", Op::Embed { table, scale: None }, &[tokens])?[0])
    }

    fn matmul(&mut self, x: ValueId, out: usize, inner: usize, format: Format) -> Outcome<ValueId> {
        let tensor = self.weight(&[out, inner], format)?;
        let weight = WeightSlice { tensor, rows: 0..out, experts: None, home: WeightHome::Device };
        Ok(self.graph.push(None, "proj", Op::MatMul { weight, bias: None, scale: None }, &[x])?[0])
    }

    /// `MatMul` with weights [out, inner], as often as makes them `beyond_bytes` in all.
    ///
    /// # Errors
    /// A row that is no multiple of the format's block.
    pub fn matmuls(out: usize, inner: usize, format: Format, beyond_bytes: u64) -> Outcome<OpBench> {
        let mut bench = OpBench::new();
        let x = bench.rows(inner)?;
        let each = format.row_bytes(inner).unwrap_or(1) * out;
        for _ in 0..copies(beyond_bytes, each) {
            let y = bench.matmul(x, out, inner, format)?;
            bench.graph.outputs.push(y);
            bench.copies += 1;
        }
        Ok(bench)
    }

    /// `ExpertMatMul` with weights [E, out, inner], K experts a token chosen by a random router. With `own_rows` each
    /// chosen expert has its own row of input, as down_proj has.
    ///
    /// # Errors
    /// A row that is no multiple of the format's block.
    pub fn expert_matmuls(
        experts: (usize, usize),
        (out, inner): (usize, usize),
        own_rows: bool,
        format: Format,
        beyond_bytes: u64,
    ) -> Outcome<OpBench> {
        let (num_experts, num_experts_per_tok) = experts;
        let mut bench = OpBench::new();
        let x = bench.rows(256)?;
        let logits = bench.matmul(x, num_experts, 256, Format::F32)?;
        let attrs = RouterAttrs {
            groups: None,
            expert_scale: None,
            num_experts,
            num_experts_per_tok,
            gate: GateKind::Softmax,
            norm_topk_prob: true,
            scale: 1.0,
            selection_bias: None,
        };
        let ids = bench.graph.push(None, "router_topk", Op::Router(attrs), &[logits])?[0];
        let project = |bench: &mut OpBench, x, out, inner, format| -> Outcome<ValueId> {
            let tensor = bench.weight(&[num_experts, out, inner], format)?;
            let weight =
                WeightSlice { tensor, rows: 0..out, experts: Some(0..num_experts), home: WeightHome::Device };
            Ok(bench.graph.push(None, "experts", Op::ExpertMatMul { weight, bias: None }, &[x, ids])?[0])
        };
        let x =
            if own_rows { project(&mut bench, x, inner, 256, Format::F32)? } else { bench.rows(inner)? };
        // A token reads K of a tensor's E experts, so K of them are what one copy takes from the cache.
        let each = format.row_bytes(inner).unwrap_or(1) * out * num_experts_per_tok;
        for _ in 0..copies(beyond_bytes, each) {
            let y = project(&mut bench, x, out, inner, format)?;
            bench.graph.outputs.push(y);
            bench.copies += 1;
        }
        Ok(bench)
    }

    /// `Attention` over a cache of `depth` positions, with its `KvWrite`.
    ///
    /// # Errors
    /// Heads that do not fit each other.
    pub fn attentions(
        (heads, kv_heads, head_dim): (usize, usize, usize),
        depth: usize,
        kv_row_bytes: impl Fn(usize) -> usize,
        beyond_bytes: u64,
    ) -> Outcome<OpBench> {
        let mut bench = OpBench::new();
        let kv_width = kv_heads * head_dim;
        let (q, k, v) = (bench.rows(heads * head_dim)?, bench.rows(kv_width)?, bench.rows(kv_width)?);
        let inputs = bench.graph.inputs;
        let each = depth * 2 * kv_row_bytes(kv_width);
        for i in 0..copies(beyond_bytes, each) {
            let layer = LayerIdx(i as u32);
            let state = |graph: &mut Graph, role| {
                let rows = Lifetime::PerToken { window: None };
                graph.add_state(role, layer, kv_heads, head_dim, rows)
            };
            let key = state(&mut bench.graph, StateRole::Key);
            let value = state(&mut bench.graph, StateRole::Value);
            let write = Op::KvWrite { key, value: Some(value) };
            let cache = bench.graph.push(Some(layer), "kv_write", write, &[k, v, inputs.kv_slots])?;
            let attrs = AttentionAttrs {
                num_attention_heads: heads,
                num_key_value_heads: kv_heads,
                head_dim,
                value_head_dim: head_dim,
                scale: (head_dim as f32).sqrt().recip(),
                window: None,
                chunk: None,
                soft_cap: None,
                sinks: None,
                value_in_key: false,
                masked: false,
            };
            let operands = [q, cache[0], cache[1], inputs.positions, inputs.sequence];
            let y = bench.graph.push(Some(layer), "attention", Op::Attention(attrs), &operands)?;
            bench.graph.outputs.extend(y);
            bench.copies += 1;
            bench.graph.num_layers = bench.copies;
        }
        Ok(bench)
    }

    /// Times steps of `tokens` tokens behind `depth` cached ones.
    ///
    /// # Errors
    /// What compiling or a step reports; an output that is not finite.
    pub fn time(
        self,
        backend: &dyn Backend,
        threads: Option<usize>,
        tokens: usize,
        depth: usize,
    ) -> Outcome<Timing> {
        let options = CompileOptions {
            threads,
            ctx_size: depth + tokens,
            micro_batch: Some(tokens),
            ..CompileOptions::default()
        };
        let mut executable = backend.compile(&self.graph, Arc::new(self.weights), &options)?;
        let mut state = executable.new_state()?;
        let mut random = self.random;
        let positions: Vec<u32> = (depth..depth + tokens).map(|p| p as u32).collect();
        let mut runs = Vec::with_capacity(RUNS);
        for run in 0..=RUNS {
            let ids: Vec<TokenId> =
                (0..tokens).map(|_| TokenId((random.next_u64() % VOCAB as u64) as u32)).collect();
            let input = StepInput {
                tokens: StepTokens::Host(&ids),
                positions: &positions,
                sequence: &vec![0; tokens],
                kv_slots: &positions,
                sequences: &[StepSequence { blocks: &blocks_in_order(depth + tokens), place: 0 }],
                logits_rows: &[tokens as u32 - 1],
            };
            if run == 0 {
                // Fills the caches, and warms up.
                let mut fill = FillStates { depth, random: Random::new(&[3]) };
                executable.step(state.as_mut(), &input, Some(&mut fill))?;
                continue;
            }
            let start = Instant::now();
            executable.step(state.as_mut(), &input, None)?;
            runs.push(start.elapsed().as_secs_f64());
        }
        for i in 0..self.graph.outputs.len() {
            if executable.output(i)?.data.to_f32().iter().any(|x| !x.is_finite()) {
                return Err(format!("output {i} is not finite").into());
            }
        }
        let sizes = StepSizes { tokens, logits_rows: 1, cached: depth + tokens };
        let all = step_cost(executable.plan(tokens), sizes, &|elems| options.kv_type.row_bytes(elems));
        let copies = self.copies as u64;
        let cost = Cost {
            weight_bytes: all.weight_bytes / copies,
            state_bytes: all.state_bytes / copies,
            flops: all.flops / copies,
            ..Cost::default()
        };
        Ok(Timing { each: Duration::from_secs_f64(median(&mut runs) / self.copies as f64), cost })
    }
}

/// Gives every state random rows before the first launch of a step.
struct FillStates {
    depth: usize,
    random: Random,
}

impl Observer for FillStates {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if launch.id.index() > 0 {
            return Ok(());
        }
        for state in &plan.graph.states {
            let rows: Vec<f32> =
                (0..self.depth * state.row_elems()).map(|_| self.random.signed_unit()).collect();
            values.write_state(state.id, 0, &rows)?;
        }
        Ok(())
    }
}

/// How often an op must stand in a graph so that its data is larger than the caches.
fn copies(beyond_bytes: u64, each_bytes: usize) -> usize {
    (beyond_bytes as usize).div_ceil(each_bytes.max(1)).max(2)
}
