//! Layers whose experts several devices share: each computes those that it holds, all at the same time.
//!
//! In front of the launch that sums a layer's experts, what they read and which they are is read back from the trunk's device. Each
//! device gets a row for each pair of a token and one of its experts; what comes back goes to the pair's place in `[T, K, D]`,
//! which is given to the trunk. The order of the sum is ExpertCombine's own, so it does not show which device had what. The
//! trunk is held in front of each such layer, and K rows a token cross, not one.

use crate::error::BackendError;
use crate::executable::{
    Executable, HostTensor, Observer, State, StepInput, StepSequence, StepTokens, TapValue, TensorData,
    ValueAccess, WeightSource, blocks_in_order,
};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, Stage, WeightDecl};
use moe_run_graph::passes::{DeviceExperts, ExpertPart, Launch, Plan, Trunk};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The most rows of a step of a device's experts: pairs of a token and an expert, sorted by expert.
pub(super) const MAX_PAIRS: usize = 256;

/// Which experts of each part a device holds, in the order of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub by_part: Vec<Vec<usize>>,
}

impl Held {
    /// Of a device by its number. Where weights stay mapped, the tensors are whole, and so are the numbers of experts.
    pub fn of(device: usize, owners: &[Vec<usize>], maps_weights: bool) -> Held {
        let own = |of: &Vec<usize>| -> Vec<usize> {
            let own: Vec<usize> = (0..of.len()).filter(|expert| of[*expert] == device).collect();
            if maps_weights && !own.is_empty() { (0..of.len()).collect() } else { own }
        };
        Held { by_part: owners.iter().map(own).collect() }
    }

    /// Experts in each part's tensors.
    pub fn counts(&self) -> Vec<usize> {
        self.by_part.iter().map(Vec::len).collect()
    }
}

/// A file whose tensors of experts hold some experts alone.
pub(super) struct ExpertSource {
    base: Arc<dyn WeightSource>,
    /// Where they follow each other in the file: bytes of the tensor.
    runs: HashMap<String, Range<usize>>,
    /// Elsewhere: copies.
    gathered: HashMap<String, Vec<u8>>,
}

impl ExpertSource {
    /// The tensors of some experts of each part.
    pub fn new(
        base: Arc<dyn WeightSource>,
        graph: &Graph,
        parts: &[ExpertPart],
        held: &Held,
    ) -> Result<ExpertSource, BackendError> {
        let (mut runs, mut gathered) = (HashMap::new(), HashMap::new());
        for (part, experts) in parts.iter().zip(&held.by_part) {
            let nodes = part.nodes.iter().filter_map(|id| graph.node(*id));
            for weight in nodes.flat_map(|node| node.op.weights()) {
                let decl = graph.weight(weight);
                let found = base.bytes(&decl.name).map_or(0, <[u8]>::len);
                let each = found / part.num_experts.max(1);
                let missing = || BackendError::Weight {
                    name: decl.name.clone(),
                    wanted_bytes: each.max(1) * part.num_experts,
                    found_bytes: found,
                };
                if each == 0 || each * part.num_experts != found || decl.part.is_some() {
                    return Err(missing());
                }
                let Some((first, last)) = experts.first().zip(experts.last()) else { continue };
                if last - first + 1 == experts.len() {
                    runs.insert(decl.name.clone(), first * each..(last + 1) * each);
                    continue;
                }
                let bytes = base.bytes(&decl.name).ok_or_else(missing)?;
                let copies = experts.iter().flat_map(|expert| &bytes[expert * each..(expert + 1) * each]);
                gathered.insert(decl.name.clone(), copies.copied().collect());
            }
        }
        Ok(ExpertSource { base, runs, gathered })
    }
}

impl WeightSource for ExpertSource {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        match (self.gathered.get(name), self.runs.get(name)) {
            (Some(bytes), _) => Some(bytes),
            (None, Some(run)) => self.base.bytes(name)?.get(run.clone()),
            (None, None) => self.base.bytes(name),
        }
    }

    fn weight(&self, decl: &WeightDecl) -> Option<&[u8]> {
        self.bytes(&decl.name).and_then(|tensor| decl.bytes_in(tensor))
    }
}

/// A device with the experts that it holds.
pub(super) struct ExpertDevice {
    pub label: String,
    executable: Box<dyn Executable>,
    state: Box<dyn State>,
    experts: DeviceExperts,
}

/// Of each output of a part, some pairs' rows one behind the other.
type Rows = Vec<Vec<f32>>;

/// A pair of a token and an expert of a device.
#[derive(Debug, Clone, Copy)]
struct Pair {
    /// Its place among the T · K.
    slot: usize,
    /// The expert as the device numbers it.
    expert: u32,
}

impl ExpertDevice {
    /// Takes an executable of a device's graph.
    pub fn new(
        label: String,
        executable: Box<dyn Executable>,
        experts: DeviceExperts,
    ) -> Result<ExpertDevice, BackendError> {
        let state = executable.new_state()?;
        Ok(ExpertDevice { label, executable, state, experts })
    }

    pub fn executable(&self) -> &dyn Executable {
        self.executable.as_ref()
    }

    /// What some pairs give: of each output of the part, the pairs' rows one behind the other.
    fn run(
        &mut self,
        part: usize,
        pairs: &[Pair],
        x: &[f32],
        per_token: usize,
        alone: bool,
    ) -> Result<Rows, BackendError> {
        let Some(of) = self.experts.parts[part].clone() else { return Ok(Vec::new()) };
        let width = self.experts.graph.value(of.x).shape.width().unwrap_or(1);
        let outputs: Vec<usize> = std::iter::once(of.y).chain(of.taps.iter().map(|tap| tap.output)).collect();
        let mut rows = vec![Vec::new(); outputs.len()];
        let at_once = if alone { 1 } else { self.executable.info().micro_batch.min(MAX_PAIRS) };
        for chunk in pairs.chunks(at_once.max(1)) {
            // One row by itself would be summed as a lone token's are: it has itself for company.
            let is_padded = chunk.len() == 1 && !alone;
            let padded: Vec<Pair> = chunk.iter().chain(chunk.iter().filter(|_| is_padded)).copied().collect();
            let n = padded.len();
            let own = padded.iter().flat_map(|pair| &x[pair.slot / per_token * width..][..width]);
            let own = HostTensor::f32(vec![n, width], own.copied().collect());
            let ids = padded.iter().map(|pair| pair.expert).collect();
            self.executable.give(of.x, own)?;
            self.executable.give(of.ids, HostTensor::u32(vec![n, 1], ids))?;
            let launches: Vec<usize> = self
                .executable
                .plan(n)
                .launches
                .iter()
                .filter(|launch| launch.nodes.iter().any(|node| of.nodes.contains(node)))
                .map(|launch| launch.id.index())
                .collect();
            let (positions, tokens): (Vec<u32>, Vec<TokenId>) =
                (0..n as u32).map(|i| (i, TokenId(0))).unzip();
            let input = StepInput {
                tokens: StepTokens::Host(&tokens),
                positions: &positions,
                sequence: &vec![0; n],
                kv_slots: &positions,
                sequences: &[StepSequence { blocks: &blocks_in_order(MAX_PAIRS), place: 0 }],
                logits_rows: &[],
            };
            self.executable.step_launches(self.state.as_mut(), &input, &launches)?;
            for (rows, output) in rows.iter_mut().zip(&outputs) {
                let made = self.executable.output(*output)?.data.to_f32();
                rows.extend_from_slice(&made[..made.len() / n * chunk.len()]);
            }
        }
        Ok(rows)
    }
}

/// The experts of all devices, as an executable's trunk sees them.
pub(super) struct Experts {
    pub devices: Vec<ExpertDevice>,
    parts: Vec<ExpertPart>,
    trunk: Trunk,
    /// By part and expert: the device among `devices`, and the number there.
    owners: Vec<Vec<(usize, u32)>>,
    /// By part: whether one token's experts are multiplied one by one, as a lone token's plain floats are.
    floats: Vec<bool>,
}

impl Experts {
    /// Puts devices together; `owners` says by part and expert which has it, `held` how each numbers its own.
    pub fn new(
        graph: &Graph,
        parts: Vec<ExpertPart>,
        trunk: Trunk,
        owners: &[Vec<usize>],
        held: &[Held],
        devices: Vec<ExpertDevice>,
    ) -> Result<Experts, BackendError> {
        let owner = |part: usize, expert: usize| -> Result<(usize, u32), BackendError> {
            let device = owners[part][expert];
            let own = held.get(device).and_then(|h| h.by_part[part].iter().position(|e| *e == expert));
            let own = own.ok_or_else(|| BackendError::Input(format!("expert {expert} is on no device")))?;
            Ok((device, own as u32))
        };
        let of_part = |(p, part): (usize, &ExpertPart)| (0..part.num_experts).map(|e| owner(p, e)).collect();
        let owners = parts.iter().enumerate().map(of_part).collect::<Result<_, _>>()?;
        let is_float = |part: &ExpertPart| {
            let nodes = part.nodes.iter().filter_map(|id| graph.node(*id));
            let mut slices = nodes.filter_map(|node| node.op.weight_slice());
            slices.any(|slice| !graph.weight(slice.tensor).format.is_quantized())
        };
        let floats = parts.iter().map(is_float).collect();
        Ok(Experts { devices, parts, trunk, owners, floats })
    }

    /// The parts that a launch reads the results of.
    fn read_by(&self, launch: &Launch) -> Vec<usize> {
        let readers = self.trunk.readers.iter().enumerate();
        readers.filter(|(_, reader)| launch.nodes.contains(reader)).map(|(part, _)| part).collect()
    }

    /// What a part's experts give for `x` `[T, D]` and `ids` `[T, K]`: `[T, K, D]`, and what its taps show.
    fn run(
        &mut self,
        part: usize,
        x: &HostTensor,
        ids: &HostTensor,
    ) -> Result<(HostTensor, Vec<(Stage, HostTensor)>), BackendError> {
        let of = &self.parts[part];
        let wrong = |detail: String| BackendError::Value { value: of.ids.to_string(), detail };
        let TensorData::U32(chosen) = &ids.data else { return Err(wrong("no ids".into())) };
        let (tokens, per_token) = (chosen.len() / of.per_token.max(1), of.per_token.max(1));
        let mut pairs = vec![Vec::new(); self.devices.len()];
        for (slot, expert) in chosen.iter().enumerate() {
            let found = self.owners[part].get(*expert as usize);
            let (device, own) =
                *found.ok_or_else(|| wrong(format!("expert {expert} of {}", of.num_experts)))?;
            pairs[device].push(Pair { slot, expert: own });
        }
        pairs.iter_mut().for_each(|pairs| pairs.sort_by_key(|pair| (pair.expert, pair.slot)));
        let alone = tokens == 1 && self.floats[part];
        let x = x.data.to_f32();
        let made = side_by_side(&mut self.devices, &pairs, &|device, pairs| {
            device.run(part, pairs, &x, per_token, alone)
        })?;
        // Of each output, every pair's row at its place.
        let mut all: Vec<Vec<f32>> = Vec::new();
        for (of_device, pairs) in made.iter().zip(&pairs) {
            for (i, rows) in of_device.iter().enumerate() {
                let width = rows.len() / pairs.len().max(1);
                if all.len() == i {
                    all.push(vec![0.0; chosen.len() * width]);
                }
                for (row, pair) in rows.chunks_exact(width.max(1)).zip(pairs) {
                    all[i][pair.slot * width..][..width].copy_from_slice(row);
                }
            }
        }
        let tensor = |data: Vec<f32>| {
            let width = data.len() / chosen.len().max(1);
            HostTensor::f32(vec![tokens, per_token, width], data)
        };
        let taps = self.devices.iter().find_map(|device| device.experts.parts[part].as_ref());
        let stages: Vec<Stage> = taps.map_or_else(Vec::new, |of| of.taps.iter().map(|t| t.stage).collect());
        let mut all = all.into_iter().map(tensor);
        let y = all.next().ok_or_else(|| wrong("no device has computed anything".into()))?;
        Ok((y, stages.into_iter().zip(all).collect()))
    }

    /// Which devices hold how many experts, for people: "experts: 64 on cuda:0, 192 on cpu".
    pub fn text(&self) -> String {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        self.owners.iter().flatten().for_each(|(device, _)| *counts.entry(*device).or_default() += 1);
        let each: Vec<String> =
            counts.iter().map(|(device, n)| format!("{n} on {}", self.devices[*device].label)).collect();
        format!("experts: {}", each.join(", "))
    }
}

/// Runs devices that have pairs, all at the same time, the first on this thread.
fn side_by_side(
    devices: &mut [ExpertDevice],
    pairs: &[Vec<Pair>],
    run: &(impl Fn(&mut ExpertDevice, &[Pair]) -> Result<Rows, BackendError> + Sync),
) -> Result<Vec<Rows>, BackendError> {
    std::thread::scope(|scope| {
        let mut first = None;
        let mut others = Vec::new();
        for (i, (device, pairs)) in devices.iter_mut().zip(pairs).enumerate() {
            if pairs.is_empty() {
                continue;
            }
            if first.is_none() {
                first = Some((i, device, pairs));
                continue;
            }
            let label = device.label.clone();
            let thread = std::thread::Builder::new().spawn_scoped(scope, move || run(device, pairs));
            let thread = thread.map_err(|error| BackendError::Device {
                backend: super::NAME,
                device: label,
                detail: format!("no thread for its experts: {error}"),
            })?;
            others.push((i, thread));
        }
        let mut made = vec![Vec::new(); pairs.len()];
        if let Some((i, device, pairs)) = first {
            made[i] = run(device, pairs)?;
        }
        for (i, thread) in others {
            made[i] = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(made)
    })
}

/// Computes experts in front of the launches that sum them, and hands the launches on.
pub(super) struct ExpertObserver<'a> {
    pub experts: &'a mut Experts,
    pub observer: Option<&'a mut dyn Observer>,
    pub input: &'a StepInput<'a>,
}

impl Observer for ExpertObserver<'_> {
    fn before_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        for part in self.experts.read_by(launch) {
            let of = &self.experts.parts[part];
            let layer = Some(of.layer.index());
            let (x, ids) = (values.read(of.x)?, values.read(of.ids)?);
            let (y, taps) = self.experts.run(part, &x, &ids)?;
            values.write(self.experts.trunk.given[part], &y)?;
            let Some(observer) = self.observer.as_mut() else { continue };
            for (stage, tensor) in &taps {
                observer.tap(&TapValue {
                    stage: *stage,
                    layer,
                    tensor: tensor.view(),
                    positions: self.input.positions,
                    logits_rows: self.input.logits_rows,
                    production: true,
                })?;
            }
        }
        match self.observer.as_mut() {
            Some(observer) => observer.before_launch(plan, launch, values),
            None => Ok(()),
        }
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        match self.observer.as_mut() {
            Some(observer) => observer.after_launch(plan, launch, elapsed, values),
            None => Ok(()),
        }
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        match self.observer.as_mut() {
            Some(observer) => observer.tap(tap),
            None => Ok(()),
        }
    }
}
