//! Stage 5, wgpu: adapters, the device with what it may use, buffers, and failures as errors with advice.

use super::{Features, NAME};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{DeviceInfo, DeviceKind};
use moe_run_runtime::host_memory::host_memory;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a [`super::Wgpu`] backend may use; tests switch features off and force small limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WgpuOptions {
    /// Optional shader features that are used where the adapter has them.
    pub allowed: Features,
    /// Time launches on the device where the adapter can.
    pub timestamps: bool,
    /// Put at most so many bytes of a weight tensor into one buffer; larger ones are split by rows. `None`: what the
    /// adapter binds.
    pub max_tensor_bytes: Option<u64>,
    /// Keep compiled pipelines on disk where the driver can.
    pub pipeline_cache: bool,
    /// What tests make the device fail at.
    pub faults: Faults,
}

/// Failures that a test cannot have from a driver at will; none by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// The device has so much memory: buffers beyond it are refused as a driver refuses them.
    pub memory_bytes: Option<u64>,
    /// The device is lost at this submission.
    pub lost_at_submission: Option<u64>,
    /// Shaders of this op do not compile.
    pub broken_shader: Option<&'static str>,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        WgpuOptions {
            allowed: Features { subgroups: true, f16: true, dot4: true },
            timestamps: true,
            max_tensor_bytes: None,
            pipeline_cache: true,
            faults: Faults::default(),
        }
    }
}

/// What a device reported behind the calls' backs, first report first.
#[derive(Debug, Default)]
struct Failures {
    reports: Mutex<Vec<String>>,
}

impl Failures {
    fn add(&self, report: String) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
    }

    fn first(&self) -> Option<String> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }
}

/// An opened device.
pub(super) struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub features: Features,
    pub timestamps: bool,
    pub limits: wgpu::Limits,
    pub max_binding_bytes: u64,
    pub max_tensor_bytes: u64,
    pub pipeline_cache: bool,
    /// Command buffers submitted so far.
    pub submissions: AtomicU64,
    /// Compute passes encoded so far.
    pub passes: AtomicU64,
    /// Steps whose commands were encoded before their token was known to the host.
    pub steps_encoded_ahead: AtomicU64,
    /// Copied to the host so far.
    pub bytes_read_back: AtomicU64,
    /// Uploaded as weights so far.
    pub weight_bytes: AtomicU64,
    /// Held by buffers.
    pub buffer_bytes: AtomicU64,
    /// The most that uploading ever held on the host beside the mapping.
    pub peak_staged_bytes: AtomicU64,
    pub faults: Faults,
    failures: Arc<Failures>,
}

/// The graphics interfaces that are looked for.
const INTERFACES: wgpu::Backends =
    wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);

/// One connection to the drivers for the whole process: they may print when they are loaded.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = INTERFACES;
        // WGPU_DEBUG=0 keeps names and source languages, which older validation layers do not know, out of debug builds' SPIR-V.
        descriptor.flags = descriptor.flags.with_env();
        wgpu::Instance::new(descriptor)
    })
}

fn kind(info: &wgpu::AdapterInfo) -> DeviceKind {
    match info.device_type {
        wgpu::DeviceType::Cpu => DeviceKind::Software,
        wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => DeviceKind::DiscreteGpu,
        wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Other => DeviceKind::IntegratedGpu,
    }
}

/// Best first.
fn preference(kind: DeviceKind) -> u8 {
    match kind {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        DeviceKind::Software | DeviceKind::Cpu | DeviceKind::Unsupported => 2,
    }
}

/// Adapters in the order in which `devices` numbers them: best first, the driver's order among equals.
fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(INTERFACES));
    adapters.sort_by_key(|a| preference(kind(&a.get_info())));
    adapters
}

/// The adapter's features among those allowed.
fn features(instance: &wgpu::Instance, adapter: &wgpu::Adapter, allowed: Features) -> Features {
    let has = adapter.features();
    let packed = wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct;
    Features {
        subgroups: allowed.subgroups && has.contains(wgpu::Features::SUBGROUP),
        f16: allowed.f16 && has.contains(wgpu::Features::SHADER_F16),
        dot4: allowed.dot4 && instance.wgsl_language_features().contains(packed),
    }
}

fn has_timestamps(adapter: &wgpu::Adapter, options: &WgpuOptions) -> bool {
    options.timestamps && adapter.features().contains(wgpu::Features::TIMESTAMP_QUERY)
}

/// Optional features that are not in use, with what is done in their place.
fn missing(features: Features, timestamps: bool) -> Vec<String> {
    let all = [
        (features.subgroups, "subgroups", "sums go through workgroup memory"),
        (features.f16, "shader-f16", "the f16 cache is read by integer arithmetic"),
        (features.dot4, "packed_4x8_integer_dot_product", "8-bit products are four multiplications"),
        (timestamps, "timestamp-query", "launches are timed on the host"),
    ];
    let missing = all.into_iter().filter(|(has, ..)| !has);
    missing.map(|(_, name, instead)| format!("{name} ({instead})")).collect()
}

/// How many lanes a subgroup of the adapter has: a shader finds its own, which may be any of them.
fn lanes(info: &wgpu::AdapterInfo) -> String {
    match (info.subgroup_min_size, info.subgroup_max_size) {
        (least, most) if least == most => format!("of {most} lanes"),
        (least, most) => format!("of {least} to {most} lanes"),
    }
}

/// The adapters of this machine.
pub(super) fn list(options: &WgpuOptions) -> Result<Vec<DeviceInfo>, BackendError> {
    let instance = instance();
    let found = adapters(instance);
    if found.is_empty() {
        return Err(no_adapter());
    }
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let mut details = vec![
            ("interface".to_owned(), info.backend.to_string()),
            ("driver".to_owned(), format!("{} {}", info.driver, info.driver_info).trim().to_owned()),
            ("largest buffer".to_owned(), format!("{} bytes", limits.max_buffer_size)),
            ("largest binding".to_owned(), format!("{} bytes", limits.max_storage_buffer_binding_size)),
            ("subgroups".to_owned(), lanes(&info)),
            ("features used".to_owned(), features(instance, adapter, options.allowed).to_string()),
        ];
        let missing = missing(features(instance, adapter, options.allowed), has_timestamps(adapter, options));
        if !missing.is_empty() {
            details.push(("features missing".to_owned(), missing.join("; ")));
        }
        if kind(&info) == DeviceKind::Software {
            details
                .push(("note".to_owned(), "run by the processor; --backend auto never takes it".to_owned()));
        }
        DeviceInfo {
            backend: NAME,
            index,
            name: info.name.clone(),
            kind: kind(&info),
            details,
            memory_bytes: None,
        }
    };
    Ok(found.iter().enumerate().map(describe).collect())
}

fn no_adapter() -> BackendError {
    BackendError::NoDevice {
        backend: NAME,
        detail: "no Vulkan, Metal or DX12 adapter was found".into(),
        advice: "install the GPU's driver (on Debian a software adapter is in the package mesa-vulkan-drivers), or use \
                 --backend cpu"
            .into(),
    }
}

/// The adapter that `wanted` names by index or by a part of its name, else the best.
fn choose(found: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter, BackendError> {
    let names: Vec<String> = found.iter().map(|a| a.get_info().name).collect();
    let index = match wanted {
        None => Some(0),
        Some(wanted) => match wanted.parse::<usize>() {
            Ok(index) => Some(index).filter(|i| *i < names.len()),
            Err(_) => {
                let wanted = wanted.to_lowercase();
                names.iter().position(|n| n.to_lowercase().contains(&wanted))
            }
        },
    };
    if found.is_empty() {
        return Err(no_adapter());
    }
    let Some(index) = index else {
        let list: Vec<String> = names.iter().enumerate().map(|(i, n)| format!("{i} ({n})")).collect();
        return Err(BackendError::NoDevice {
            backend: NAME,
            detail: format!("no adapter '{}'; found {}", wanted.unwrap_or_default(), list.join(", ")),
            advice: "give an index or a part of a name from `moe-run devices`".into(),
        });
    };
    found.into_iter().nth(index).ok_or_else(no_adapter)
}

/// The limits to ask for: buffers and bindings as large as the adapter allows, for tensors are split at them; WebGPU's defaults
/// in what the shaders rely on; and in what they never touch, textures for one, no more than there is.
fn wanted_limits(adapter: &wgpu::Limits) -> wgpu::Limits {
    let defaults = wgpu::Limits::default();
    wgpu::Limits {
        max_buffer_size: adapter.max_buffer_size,
        max_storage_buffer_binding_size: adapter.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: defaults.max_storage_buffers_per_shader_stage,
        max_compute_workgroup_storage_size: defaults.max_compute_workgroup_storage_size,
        max_compute_invocations_per_workgroup: defaults.max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x: defaults.max_compute_workgroup_size_x,
        max_compute_workgroups_per_dimension: defaults.max_compute_workgroups_per_dimension,
        ..defaults.or_worse_values_from(adapter)
    }
}

/// The features to ask for. dot4I8Packed is a language feature, which needs no asking.
fn required_features(features: Features, timestamps: bool, pipeline_cache: bool) -> wgpu::Features {
    let mut required = wgpu::Features::empty();
    required.set(wgpu::Features::SUBGROUP, features.subgroups);
    required.set(wgpu::Features::SHADER_F16, features.f16);
    required.set(wgpu::Features::TIMESTAMP_QUERY, timestamps);
    required.set(wgpu::Features::PIPELINE_CACHE, pipeline_cache);
    required
}

/// Limits of the adapter that are below what the shaders need, each with both numbers.
fn lacking_limits(wanted: &wgpu::Limits, adapter: &wgpu::Limits) -> Vec<String> {
    let mut lacking = Vec::new();
    wanted.check_limits_with_fail_fn(adapter, false, |name, wanted, found| {
        lacking.push(format!("{name} is {found}, wanted {wanted}"));
    });
    lacking
}

/// How long the result of a mapping may be on its way once its submission is done.
const READ_BACK: std::time::Duration = std::time::Duration::from_secs(10);

impl Device {
    /// Opens the device that `wanted` names, or the best.
    pub fn open(wanted: Option<&str>, options: &WgpuOptions) -> Result<Device, BackendError> {
        let instance = instance();
        let adapter = choose(adapters(instance), wanted)?;
        let info = adapter.get_info();
        let failed = |detail: String| BackendError::NoDevice {
            backend: NAME,
            detail: format!("{} ({}): {detail}", info.name, info.driver_info),
            advice: "update the driver, name another --device (see `moe-run devices`), or use --backend cpu"
                .into(),
        };
        let limits = wanted_limits(&adapter.limits());
        let lacking = lacking_limits(&limits, &adapter.limits());
        if !lacking.is_empty() {
            return Err(failed(lacking.join("; ")));
        }

        let features = features(instance, &adapter, options.allowed);
        let timestamps = has_timestamps(&adapter, options);
        let pipeline_cache =
            options.pipeline_cache && adapter.features().contains(wgpu::Features::PIPELINE_CACHE);
        let required_features = required_features(features, timestamps, pipeline_cache);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("moe-run"),
            required_features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| failed(e.to_string()))?;

        let failures = Arc::new(Failures::default());
        let on_error = failures.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| on_error.add(describe(&e))));
        let on_loss = failures.clone();
        device.set_device_lost_callback(move |reason, message| {
            // A device that this program lets go of is "destroyed": no failure.
            if reason != wgpu::DeviceLostReason::Destroyed {
                on_loss.add(format!("the device was lost ({reason:?}): {message}"));
            }
        });
        // Shaders address words with 32 bits.
        let max_binding_bytes =
            limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 34) / 4 * 4;
        Ok(Device {
            device,
            queue,
            info,
            features,
            timestamps,
            limits,
            max_binding_bytes,
            max_tensor_bytes: options.max_tensor_bytes.unwrap_or(u64::MAX).min(max_binding_bytes),
            pipeline_cache,
            submissions: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            steps_encoded_ahead: AtomicU64::new(0),
            bytes_read_back: AtomicU64::new(0),
            weight_bytes: AtomicU64::new(0),
            buffer_bytes: AtomicU64::new(0),
            peak_staged_bytes: AtomicU64::new(0),
            faults: options.faults,
            failures,
        })
    }

    /// The adapter's name; a software adapter says that it is one, and what is missing is named.
    pub fn name(&self) -> String {
        let mut remarks = Vec::new();
        if kind(&self.info) == DeviceKind::Software {
            remarks.push("warning: a software adapter, run by the processor and slow".to_owned());
        }
        let missing = missing(self.features, self.timestamps);
        if !missing.is_empty() {
            remarks.push(format!("without {}", missing.join(", ")));
        }
        match remarks.as_slice() {
            [] => self.info.name.clone(),
            remarks => format!("{} ({})", self.info.name, remarks.join("; ")),
        }
    }

    /// What the device reported so far, as an error.
    pub fn check(&self) -> Result<(), BackendError> {
        match self.failures.first() {
            None => Ok(()),
            Some(detail) => Err(self.failed(detail)),
        }
    }

    /// Waits until everything that was submitted is done.
    pub fn wait(&self) -> Result<(), BackendError> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    fn poll(&self, until: wgpu::PollType) -> Result<(), BackendError> {
        let polled = self.device.poll(until);
        self.check()?;
        polled.map(drop).map_err(|e| self.failed(e.to_string()))
    }

    /// Begins a compute pass.
    pub fn pass<'e>(
        &self,
        encoder: &'e mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> wgpu::ComputePass<'e> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes })
    }

    /// Submits commands.
    pub fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        let number = self.submissions.fetch_add(1, Ordering::Relaxed);
        if self.faults.lost_at_submission.is_some_and(|at| number >= at) {
            self.failures.add("the device was lost (Unknown): injected by a test".to_owned());
            self.device.destroy();
        }
        self.queue.submit([commands])
    }

    /// Waits for a submission (`None`: the last one) and copies a buffer's first words.
    pub fn map_words(
        &self,
        buffer: &wgpu::Buffer,
        words: usize,
        submission_index: Option<wgpu::SubmissionIndex>,
    ) -> Result<Vec<u32>, BackendError> {
        let failed = |detail: String| self.failed(format!("reading back: {detail}"));
        self.bytes_read_back.fetch_add(words as u64 * 4, Ordering::Relaxed);
        let (sender, receiver) = std::sync::mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, 0..words as u64 * 4, move |result| {
            // The receiver waits below; it is only gone if waiting failed, and then nobody needs the result.
            sender.send(result).unwrap_or_default();
        });
        self.poll(wgpu::PollType::Wait { submission_index, timeout: None })?;
        // Where threads share a device, another one's poll may be about to send it.
        let mapped = receiver.recv_timeout(READ_BACK).map_err(|e| failed(e.to_string()))?;
        mapped.map_err(|e| failed(e.to_string()))?;
        let result = {
            let view = buffer.get_mapped_range(0..words as u64 * 4).map_err(|e| failed(e.to_string()))?;
            let mut out = vec![0u32; words];
            bytemuck::cast_slice_mut::<u32, u8>(&mut out).copy_from_slice(&view);
            out
        };
        buffer.unmap();
        Ok(result)
    }

    /// A failure of the device in the driver's words.
    pub fn failed(&self, detail: String) -> BackendError {
        BackendError::Device { backend: NAME, device: self.info.name.clone(), detail }
    }

    fn out_of_memory(
        &self,
        what: &str,
        wanted_bytes: u64,
        available_bytes: u64,
        advice: &str,
    ) -> BackendError {
        BackendError::OutOfMemory {
            what: format!("device {}: {what}", self.info.name),
            wanted_bytes,
            available_bytes,
            advice: advice.to_owned(),
        }
    }

    /// What is free, where that is known: of the host's memory, if the processor runs the shaders.
    pub fn available_bytes(&self) -> Option<u64> {
        let software = || host_memory().filter(|_| kind(&self.info) == DeviceKind::Software);
        self.faults.memory_bytes.or_else(|| software().map(|m| m.available_bytes))
    }

    /// Whether shaders can be given a buffer of this size.
    pub fn fits(&self, what: &str, size_bytes: u64, advice: &str) -> Result<(), BackendError> {
        self.within(self.max_binding_bytes, what, size_bytes, advice)
    }

    fn within(&self, limit: u64, what: &str, size_bytes: u64, advice: &str) -> Result<(), BackendError> {
        if size_bytes <= limit {
            return Ok(());
        }
        let advice = format!("the adapter takes no larger buffer: {advice}");
        Err(self.out_of_memory(what, size_bytes, limit, &advice))
    }

    /// A buffer, or what was needed, for what, and what would fit.
    pub fn buffer(
        &self,
        what: &str,
        size_bytes: u64,
        usage: wgpu::BufferUsages,
        advice: &str,
    ) -> Result<wgpu::Buffer, BackendError> {
        let out_of_memory = |free_bytes: u64| self.out_of_memory(what, size_bytes, free_bytes, advice);
        let storage = usage.contains(wgpu::BufferUsages::STORAGE);
        let limit = if storage { self.max_binding_bytes } else { self.limits.max_buffer_size };
        self.within(limit, what, size_bytes, advice)?;
        let held_bytes = self.buffer_bytes.load(Ordering::Relaxed);
        if let Some(free_bytes) = self.faults.memory_bytes.map(|all| all.saturating_sub(held_bytes))
            && size_bytes > free_bytes
        {
            return Err(out_of_memory(free_bytes));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let descriptor = wgpu::BufferDescriptor {
            label: Some(what),
            size: size_bytes.next_multiple_of(4).max(16),
            usage,
            mapped_at_creation: false,
        };
        let buffer = self.device.create_buffer(&descriptor);
        let errors = [pollster::block_on(internal.pop()), pollster::block_on(memory.pop())];
        self.check()?;
        match errors.into_iter().flatten().next() {
            None => {
                self.buffer_bytes.fetch_add(size_bytes, Ordering::Relaxed);
                Ok(buffer)
            }
            Some(_) => Err(out_of_memory(0)),
        }
    }
}

/// wgpu's words, with the causes behind them.
pub(super) fn describe(error: &wgpu::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_adapter_says_what_to_install() {
        let error = choose(Vec::new(), None).err().unwrap();
        assert!(matches!(error, BackendError::NoDevice { .. }));
        let text = error.to_string();
        assert!(
            text.contains("no Vulkan, Metal or DX12 adapter") && text.contains("--backend cpu"),
            "{text}"
        );
    }

    /// A browser build stays possible: the plain path asks for nothing at all. Of the rest the cache on disk is native, and
    /// subgroups are so only to wgpu: WebGPU has them by the same name.
    /// (That its shaders keep to the default limits is tested beside them.)
    #[test]
    fn the_plain_path_asks_for_nothing_beyond_webgpu() {
        assert_eq!(required_features(Features::default(), false, false), wgpu::Features::empty());
        assert_eq!(wanted_limits(&wgpu::Limits::default()), wgpu::Limits::default());
        let all = Features { subgroups: true, f16: true, dot4: true };
        let native = required_features(all, true, true).difference(wgpu::Features::all_webgpu_mask());
        assert_eq!(native, wgpu::Features::PIPELINE_CACHE | wgpu::Features::SUBGROUP);
    }

    #[test]
    fn what_an_adapter_lacks_is_named() {
        let small = wgpu::Limits { max_storage_buffers_per_shader_stage: 4, ..wgpu::Limits::default() };
        let lacking = lacking_limits(&wanted_limits(&small), &small);
        assert_eq!(lacking, ["max_storage_buffers_per_shader_stage is 4, wanted 8"]);
        assert!(lacking_limits(&wgpu::Limits::default(), &wgpu::Limits::default()).is_empty());
        let narrow = wgpu::Limits { max_compute_invocations_per_workgroup: 128, ..wgpu::Limits::default() };
        let lacking = lacking_limits(&wanted_limits(&narrow), &narrow);
        assert_eq!(lacking, ["max_compute_invocations_per_workgroup is 128, wanted 256"]);
        // Small textures and small bindings are no hindrance.
        let modest = wgpu::Limits {
            max_texture_dimension_2d: 4096,
            max_buffer_size: 128 << 20,
            max_storage_buffer_binding_size: 64 << 20,
            min_uniform_buffer_offset_alignment: 512,
            ..wgpu::Limits::default()
        };
        let wanted = wanted_limits(&modest);
        assert!(lacking_limits(&wanted, &modest).is_empty());
        assert_eq!(
            (wanted.max_storage_buffer_binding_size, wanted.min_uniform_buffer_offset_alignment),
            (64 << 20, 512)
        );

        let features = Features { subgroups: true, f16: false, dot4: true };
        assert_eq!(missing(features, true), ["shader-f16 (the f16 cache is read by integer arithmetic)"]);
        assert_eq!(missing(Features::default(), false).len(), 4);
        assert!(missing(Features { f16: true, ..features }, true).is_empty());
    }
}
