//! Stage 6, wgpu: the cache on the device, and its view while a step is held.

use super::NAME;
use super::device::Device;
use super::emit::StateBinding;
use super::pipelines::Pipelines;
use super::program::Program;
use super::rows::StateRows;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{KvType, PoolSize, Ring, Rings, State};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// A bind group for each way in which a dispatch binds the cache.
pub(super) type StateGroups = HashMap<StateBinding, wgpu::BindGroup>;

/// Rows of every state, as [`StateRows`] says.
pub(super) struct WgpuState {
    /// The identity of the executable that it is of.
    pub owner: Arc<()>,
    pub buffers: Vec<wgpu::Buffer>,
    pub groups: Arc<StateGroups>,
    capacity_tokens: usize,
    rings: Rings,
    size_bytes: u64,
}

impl WgpuState {
    /// The state of an executable's programs, of one sequence; `owner` is the executable's identity.
    pub fn new(
        device: &Device,
        programs: &[Program],
        pipelines: &Pipelines,
        kv_type: KvType,
        size: PoolSize,
        owner: &Arc<()>,
    ) -> Result<WgpuState, BackendError> {
        let Some(program) = programs.last() else {
            return Err(BackendError::Input("no program".into()));
        };
        let (graph, capacity_tokens) = (&program.plan.graph, size.tokens);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let rows = graph.states.iter().map(|s| StateRows::of(s, kv_type, size));
        let sizes: Vec<(u64, u64)> =
            rows.map(|r| (4 * r.words() as u64, (4 * r.words() * r.count) as u64)).collect();
        let total: u64 = sizes.iter().map(|(_, all)| all).sum();
        let mut buffers = Vec::with_capacity(sizes.len());
        for (decl, (a_row, size_bytes)) in graph.states.iter().zip(sizes) {
            let what = format!("KV cache of {}", decl.layer);
            let a_row = a_row.max(1);
            let fits = device.max_binding_bytes / a_row;
            let advice =
                format!("a binding holds {fits} positions: lower --ctx-size, or take --kv-type q8_0");
            let buffer = device.buffer(&what, size_bytes, usage, &advice).map_err(|error| {
                let had_bytes: u64 = buffers.iter().map(wgpu::Buffer::size).sum();
                let is_too_large = size_bytes > device.max_binding_bytes;
                if is_too_large { error } else { does_not_fit(error, capacity_tokens, had_bytes, total) }
            })?;
            buffers.push(buffer);
        }
        let mut groups = StateGroups::new();
        for ready in programs.iter().flat_map(|p| p.launches.iter().flatten()) {
            if ready.state == StateBinding::None || groups.contains_key(&ready.state) {
                continue;
            }
            let states = match &ready.state {
                StateBinding::None => Vec::new(),
                StateBinding::Write(state) => vec![*state],
                StateBinding::Read(states) | StateBinding::Update(states) => states.clone(),
            };
            let entries: Vec<wgpu::BindGroupEntry<'_>> = states
                .iter()
                .enumerate()
                .map(|(i, s)| wgpu::BindGroupEntry {
                    binding: i as u32,
                    resource: buffers[s.index()].as_entire_binding(),
                })
                .collect();
            let layout = pipelines.state_layout(&ready.state).ok_or_else(|| BackendError::Device {
                backend: NAME,
                device: device.info.name.clone(),
                detail: "no layout for a binding of the cache".into(),
            })?;
            let descriptor = wgpu::BindGroupDescriptor { label: Some("cache"), layout, entries: &entries };
            groups.insert(ready.state.clone(), device.device.create_bind_group(&descriptor));
        }
        device.check()?;
        let owner = Arc::clone(owner);
        let (groups, rings) = (Arc::new(groups), size.rings(&graph.states));
        Ok(WgpuState { owner, buffers, groups, capacity_tokens, rings, size_bytes: total })
    }
}

/// Out of memory at one layer's cache, told of all of them: how many positions fit.
fn does_not_fit(
    error: BackendError,
    capacity_tokens: usize,
    available_bytes: u64,
    wanted_bytes: u64,
) -> BackendError {
    let BackendError::OutOfMemory { what, .. } = error else { return error };
    let fits = u128::from(available_bytes) * capacity_tokens as u128 / u128::from(wanted_bytes.max(1));
    let advice = match fits {
        0 => "the weights leave no room for it: take a smaller quantization of the model".to_owned(),
        _ => format!("about {fits} positions fit: --ctx-size {fits}, or --kv-type q8_0"),
    };
    BackendError::OutOfMemory {
        what: format!("{what}, with those of all layers, for {capacity_tokens} positions"),
        wanted_bytes,
        available_bytes,
        advice,
    }
}

impl State for WgpuState {
    fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    fn rings(&self) -> &[Option<Ring>] {
        &self.rings
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
