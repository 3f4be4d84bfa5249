//! A backend of two ops, written against the public contract alone: what a new backend begins as. It runs what it has, and
//! refuses every other op with a typed error, at compile time and before anything is computed.

use moe_run_backends::executable::{StepLimits, ValueAccess, check_weights, deliver_taps, not_taken};
use moe_run_backends::reference::Reference;
use moe_run_backends::{
    Activations, Backend, BackendError, CompileOptions, DeviceInfo, DeviceKind, Executable, ExecutableInfo,
    HostTensor, Observer, State, StepInput, TensorData, WeightSource, Weights,
};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, LaunchPattern, Node, Op, StateId, StepSizes, ValueId};
use moe_run_graph::passes::{Plan, PlanOptions, none_alone, plan};
use moe_run_graph::quant::{ActBlock, ActProfile, Format};
use moe_run_inspect::cases::{self, OPS, TOLERANCE};
use moe_run_tests::fixtures;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "trial";

/// Add and Mul, element by element on the host.
struct Trial;

/// The function of an op that it has.
fn function(op: &Op) -> Option<fn(f32, f32) -> f32> {
    match op {
        Op::Add => Some(|a, b| a + b),
        Op::Mul => Some(|a, b| a * b),
        Op::Embed { .. }
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::PositionScale(_)
        | Op::MulHeads
        | Op::MatMul { .. }
        | Op::HeadMatMul { .. }
        | Op::Rope { .. }
        | Op::KvWrite { .. }
        | Op::Attention(_)
        | Op::AttentionScores(_)
        | Op::AttentionSoftmax(_)
        | Op::Router(_)
        | Op::GivenExperts(_)
        | Op::IndexScores(_)
        | Op::IndexSelect { .. }
        | Op::ExpertMatMul { .. }
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
        | Op::Pointwise { .. }
        | Op::Concat { .. }
        | Op::Slice { .. }
        | Op::GetRows
        | Op::Tap { .. } => None,
    }
}

impl Backend for Trial {
    fn name(&self) -> &'static str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(vec![DeviceInfo {
            backend: NAME,
            index: 0,
            name: "host".into(),
            kind: DeviceKind::Cpu,
            details: Vec::new(),
            memory_bytes: None,
        }])
    }

    fn patterns(&self, _: usize, _: &CompileOptions) -> Vec<LaunchPattern> {
        Vec::new()
    }

    fn supports(&self, _: &Graph, node: &Node) -> Result<(), BackendError> {
        // Taps are handed on by whoever runs the launches.
        if function(&node.op).is_some() || node.op.tapped().is_some() {
            return Ok(());
        }
        let detail = "only add and mul are there".into();
        Err(BackendError::Unsupported { backend: NAME, node: node.path(), op: node.op.stem(), detail })
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        &[ActBlock::X32]
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        options.profile(Activations::F32, ActBlock::X32)
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        _: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        graph.nodes.iter().try_for_each(|node| self.supports(graph, node))?;
        check_weights(graph, source.as_ref())?;
        Ok(Arc::new(NoWeights))
    }
}

/// Its ops read none.
struct NoWeights;

impl Weights for NoWeights {
    fn size_bytes(&self) -> u64 {
        0
    }

    fn compile(&self, graph: &Graph, options: &CompileOptions) -> Result<Box<dyn Executable>, BackendError> {
        graph.nodes.iter().try_for_each(|node| Trial.supports(graph, node))?;
        let micro_batch = options.micro_batch.unwrap_or(1);
        let max_sizes =
            StepSizes { tokens: micro_batch, logits_rows: options.max_logits_rows, cached: options.ctx_size };
        let options = PlanOptions { taps: &options.taps, patterns: &[], alone: &none_alone, max_sizes };
        let info = ExecutableInfo {
            backend: NAME,
            device: "host".into(),
            activations: Activations::F32,
            q8_super_block: None,
            kv_type: moe_run_backends::KvType::F32,
            threads: 1,
            micro_batch,
            weight_bytes: 0,
        };
        Ok(Box::new(Program { plan: plan(graph, &options)?, info, values: Vec::new() }))
    }
}

/// Its executable.
struct Program {
    plan: Plan,
    info: ExecutableInfo,
    values: Vec<Option<HostTensor>>,
}

/// It declares none.
struct Nothing {
    capacity_tokens: usize,
}

impl State for Nothing {
    fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// The values of a step.
struct Values<'a> {
    sizes: StepSizes,
    all: &'a mut Vec<Option<HostTensor>>,
}

fn missing(what: String) -> BackendError {
    BackendError::Value { value: what, detail: "is not there".into() }
}

impl ValueAccess for Values<'_> {
    fn sizes(&self) -> StepSizes {
        self.sizes
    }

    fn read(&mut self, value: ValueId) -> Result<HostTensor, BackendError> {
        self.all[value.index()].clone().ok_or_else(|| missing(value.to_string()))
    }

    fn write(&mut self, value: ValueId, tensor: &HostTensor) -> Result<(), BackendError> {
        self.all[value.index()] = Some(tensor.clone());
        Ok(())
    }

    fn read_state(&mut self, state: StateId, _: Range<usize>) -> Result<Vec<f32>, BackendError> {
        Err(missing(state.to_string()))
    }

    fn write_state(&mut self, state: StateId, _: usize, _: &[f32]) -> Result<(), BackendError> {
        Err(missing(state.to_string()))
    }
}

impl Executable for Program {
    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn plan(&self, _: usize) -> &Plan {
        &self.plan
    }

    fn new_state(&self) -> Result<Box<dyn State>, BackendError> {
        Ok(Box::new(Nothing { capacity_tokens: self.plan.max_sizes.cached }))
    }

    fn step(
        &mut self,
        _: &mut dyn State,
        input: &StepInput<'_>,
        observer: Option<&mut dyn Observer>,
    ) -> Result<(), BackendError> {
        let sizes = self.plan.max_sizes;
        input.check(&StepLimits { sizes, vocab_size: None, slots: sizes.cached, places: 1 })?;
        let observer = observer.ok_or_else(|| missing("the observer that gives the inputs".into()))?;
        self.values.clear();
        self.values.resize(self.plan.graph.values.len(), None);
        let mut values = Values { sizes: input.sizes(), all: &mut self.values };
        for launch in &self.plan.launches {
            observer.before_launch(&self.plan, launch, &mut values)?;
            for node in self.plan.launch_nodes(launch) {
                let f = function(&node.op).ok_or_else(|| missing(node.path()))?;
                let (a, b) = (values.read(node.inputs[0])?, values.read(node.inputs[1])?);
                let data = a.data.to_f32().iter().zip(b.data.to_f32()).map(|(a, b)| f(*a, b)).collect();
                values.write(node.outputs[0], &HostTensor::f32(a.shape, data))?;
            }
            observer.after_launch(&self.plan, launch, Duration::ZERO, &mut values)?;
            deliver_taps(&self.plan, launch, input, &mut values, observer)?;
        }
        Ok(())
    }

    fn logits(&mut self, row: usize, _: &mut Vec<f32>) -> Result<(), BackendError> {
        Err(BackendError::Input(format!("row {row} of no logits")))
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        Err(not_taken())
    }

    fn output(&mut self, index: usize) -> Result<HostTensor, BackendError> {
        let value = self.plan.graph.outputs[index];
        self.values[value.index()].clone().ok_or_else(|| missing(format!("output {index}")))
    }
}

/// The cases of what it has run and agree with the reference; those of every other op are refused by name.
#[test]
fn it_runs_what_it_has_and_refuses_the_rest() {
    let (mut ran, mut refused) = (Vec::new(), Vec::new());
    for op in OPS {
        for seed in 0..4 {
            let case = cases::case(op, Format::Q8_0, seed).unwrap().unwrap();
            match cases::compile(&case, &Trial, &CompileOptions::default()) {
                Ok(mut executable) => {
                    let found = cases::run_steps(&case, executable.as_mut()).unwrap();
                    let same = cases::same_definition(executable.info());
                    let wanted = cases::run(&case, &Reference, &same).unwrap();
                    assert_eq!(found.len(), wanted.len(), "{}", case.name);
                    for (found, wanted) in found.iter().zip(&wanted) {
                        assert!(matches!(found.data, TensorData::F32(_)));
                        assert!(cases::distance(found, wanted) <= TOLERANCE, "{}", case.name);
                    }
                    ran.push(*op);
                }
                Err(error) => {
                    let BackendError::Unsupported { backend: NAME, op: named, .. } = &error else {
                        panic!("{}: {error}", case.name)
                    };
                    assert!(OPS.contains(named), "{error}");
                    assert!(error.to_string().contains("only add and mul are there"), "{error}");
                    refused.push(*op);
                }
            }
        }
    }
    ran.dedup();
    refused.dedup();
    assert_eq!(ran, ["add", "mul", "tap"], "refused: {refused:?}");
    assert_eq!(ran.len() + refused.len(), OPS.len());
}

/// A whole model names the first node that is not there.
#[test]
fn a_model_is_refused_by_its_first_node() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let refused = Trial.compile(&model.graph, model.file.clone(), &CompileOptions::default()).err().unwrap();
    assert!(matches!(&refused, BackendError::Unsupported { op: "embed", .. }), "{refused}");
}
