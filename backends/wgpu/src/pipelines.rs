//! Stage 5, wgpu: variants → pipelines, compiled side by side and kept on disk where the driver can.

use super::NAME;
use super::device::{Device, describe};
use super::disk_cache::DiskCache;
use super::emit::{Dispatch, StateBinding};
use super::shader::{Variant, compose};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::Progress;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A compiled shader.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    /// The WGSL, whose `struct Params` orders the parameters.
    pub text: Arc<str>,
}

/// How a shader binds the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum StateLayout {
    None,
    Write(usize),
    Read(usize),
}

impl From<&StateBinding> for StateLayout {
    fn from(binding: &StateBinding) -> Self {
        match binding {
            StateBinding::None => StateLayout::None,
            StateBinding::Write(_) => StateLayout::Write(1),
            StateBinding::Update(states) => StateLayout::Write(states.len()),
            StateBinding::Read(states) => StateLayout::Read(states.len()),
        }
    }
}

/// All pipelines of an executable, or of all that share a device, with the layouts that bind groups are made for. A clone has
/// the same pipelines, by reference.
#[derive(Default, Clone)]
pub(super) struct Pipelines {
    by_variant: HashMap<Variant, Pipeline>,
    /// Group 0 by the number of weight bindings: parameters, step, arena, small weights, weights.
    weights: HashMap<usize, wgpu::BindGroupLayout>,
    /// Group 1: the cache.
    states: HashMap<StateLayout, wgpu::BindGroupLayout>,
}

fn storage(binding: u32, read_only: bool) -> wgpu::BindGroupLayoutEntry {
    buffer_entry(binding, wgpu::BufferBindingType::Storage { read_only })
}

fn buffer_entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

impl Pipelines {
    /// Compiles what the dispatches need and is not there yet.
    pub fn add<'d>(
        &mut self,
        device: &Device,
        dispatches: impl Iterator<Item = &'d Dispatch>,
        progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
    ) -> Result<(), BackendError> {
        let mut wanted: HashMap<&Variant, (usize, StateLayout)> = HashMap::new();
        for dispatch in dispatches {
            let state = StateLayout::from(&dispatch.state);
            self.layouts(device, dispatch.weights.len(), state);
            if !self.by_variant.contains_key(&dispatch.variant) {
                wanted.insert(&dispatch.variant, (dispatch.weights.len(), state));
            }
        }
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        wanted.sort();
        let cache = DiskCache::open(device);
        let compiled = self.compile_all(device, &wanted, cache.as_ref(), progress)?;
        self.by_variant.extend(compiled);
        if let Some(cache) = cache {
            cache.save();
        }
        Ok(())
    }

    fn compile_all(
        &self,
        device: &Device,
        wanted: &[(&Variant, (usize, StateLayout))],
        cache: Option<&DiskCache>,
        progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
    ) -> Result<Vec<(Variant, Pipeline)>, BackendError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted.len());
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let results = Mutex::new(Vec::with_capacity(wanted.len()));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((variant, (weights, state))) =
                        wanted.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let result = self.compile(device, variant, *weights, *state, cache);
                        let failed = result.is_err();
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                        if failed {
                            return;
                        }
                        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                        if let Some(progress) = progress {
                            progress(Progress {
                                done,
                                total: wanted.len() as u64,
                                what: "compiling shaders",
                            });
                        }
                    }
                });
            }
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
    }

    fn compile(
        &self,
        device: &Device,
        variant: &Variant,
        weights: usize,
        state: StateLayout,
        cache: Option<&DiskCache>,
    ) -> Result<(Variant, Pipeline), BackendError> {
        let failed = |detail: String| BackendError::Device {
            backend: NAME,
            device: device.info.name.clone(),
            detail: format!(
                "shader {variant} does not compile: {detail}; update the driver, or use --backend cpu"
            ),
        };
        let mut text = compose(variant).map_err(|e| failed(e.to_string()))?;
        if device.faults.broken_shader == Some(variant.op) {
            text.push_str("fn broken_by_a_test() { return 1u; }\n");
        }
        let scopes =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
                .map(|filter| device.device.push_error_scope(filter));
        let module = device.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(variant.op),
            source: wgpu::ShaderSource::Wgsl(text.as_str().into()),
        });
        let mut groups = vec![self.weights.get(&weights)];
        if state != StateLayout::None {
            groups.push(self.states.get(&state));
        }
        let layout = device.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(variant.op),
            bind_group_layouts: &groups,
            immediate_size: 0,
        });
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(variant.op),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: cache.map(|c| &c.cache),
        });
        // Scopes close in reverse order of their opening.
        let errors = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop()));
        let words: Vec<String> = errors.map(|e| describe(&e)).collect();
        device.check()?;
        if words.is_empty() {
            Ok((variant.clone(), Pipeline { pipeline, text: text.into() }))
        } else {
            Err(failed(words.join("; ")))
        }
    }

    fn layouts(&mut self, device: &Device, weights: usize, state: StateLayout) {
        let create = |label: &str, entries: &[wgpu::BindGroupLayoutEntry]| {
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(label), entries };
            device.device.create_bind_group_layout(&descriptor)
        };
        self.weights.entry(weights).or_insert_with(|| {
            let mut entries = vec![
                buffer_entry(0, wgpu::BufferBindingType::Uniform),
                buffer_entry(1, wgpu::BufferBindingType::Uniform),
                storage(2, false),
                storage(3, true),
            ];
            entries.extend((0..weights as u32).map(|i| storage(4 + i, true)));
            create("values and weights", &entries)
        });
        self.states.entry(state).or_insert_with(|| match state {
            StateLayout::None => create("no state", &[]),
            StateLayout::Write(n) => {
                create("states written", &(0..n as u32).map(|i| storage(i, false)).collect::<Vec<_>>())
            }
            StateLayout::Read(n) => {
                create("states read", &(0..n as u32).map(|i| storage(i, true)).collect::<Vec<_>>())
            }
        });
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_variant.len()
    }

    /// The pipeline of a dispatch that [`Pipelines::add`] has seen.
    pub fn get(&self, variant: &Variant) -> Option<&Pipeline> {
        self.by_variant.get(variant)
    }

    /// The layout of group 0.
    pub fn weights_layout(&self, weights: usize) -> Option<&wgpu::BindGroupLayout> {
        self.weights.get(&weights)
    }

    /// The layout of group 1.
    pub fn state_layout(&self, binding: &StateBinding) -> Option<&wgpu::BindGroupLayout> {
        self.states.get(&StateLayout::from(binding))
    }
}
