//! Stage 5, wgpu: the driver's own cache of compiled pipelines, kept as a file where the driver can (Vulkan).
//!
//! Input: the file of an earlier start, if there is a whole one. Output: a cache for the pipelines to be made with, written
//! back when it has grown. A file that is missing, damaged or another driver's, and a folder that cannot be written, cost
//! the time of compiling and nothing else.

use super::device::Device;
use moe_run_graph::fnv::Fnv1a;
use moe_run_runtime::partial_file;
use std::path::{Path, PathBuf};

/// What a file begins with; behind it stand the checksum of the rest, little-endian, and the rest.
const MAGIC: [u8; 8] = *b"moerunPC";

/// The cache of one adapter.
pub(super) struct DiskCache {
    pub cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Of what was loaded.
    loaded: Option<u64>,
}

/// Where a user's caches lie.
fn folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = var("XDG_CACHE_HOME")
        .or_else(|| var("LOCALAPPDATA"))
        .or_else(|| var("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("moe-run"))
}

/// Tells damage, not malice.
fn checksum(data: &[u8]) -> u64 {
    Fnv1a::of(data).value()
}

/// What [`DiskCache::save`] has written, if all of it is there and unchanged.
fn load(path: &Path) -> Option<Vec<u8>> {
    let mut file = std::fs::read(path).ok()?;
    let (head, data) = file.split_at_checked(16)?;
    let whole = head[..8] == MAGIC && head[8..] == checksum(data).to_le_bytes();
    whole.then(|| file.split_off(16))
}

impl DiskCache {
    /// The cache of a device; `None` where the driver, the options or the environment have none.
    pub fn open(device: &Device) -> Option<DiskCache> {
        DiskCache::open_in(device, &folder()?)
    }

    fn open_in(device: &Device, folder: &Path) -> Option<DiskCache> {
        let key = wgpu::util::pipeline_cache_key(&device.info).filter(|_| device.pipeline_cache)?;
        let path = folder.join(key);
        let data = load(&path);
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("moe-run"), data: data.as_deref(), fallback: true };
        let scopes =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory]
                .map(|filter| device.device.push_error_scope(filter));
        // SAFETY: the bytes are what `save` wrote, unchanged by their checksum: what `get_data` returned for the same
        // adapter key. wgpu checks its header against the adapter and the driver, and with `fallback` takes an empty cache
        // where it does not fit.
        let cache = unsafe { device.device.create_pipeline_cache(&descriptor) };
        let failed = scopes.into_iter().rev().filter_map(|scope| pollster::block_on(scope.pop())).count() > 0;
        (!failed).then(|| DiskCache { cache, path, loaded: data.as_deref().map(checksum) })
    }

    /// Writes the cache beside its place and moves it there, if it is not what was loaded: another process finds the old
    /// file or the new one, and of two that save at once the later one's stays.
    pub fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let checksum = checksum(&data);
        let Some(folder) = self.path.parent().filter(|_| self.loaded != Some(checksum)) else { return };
        let file = [&MAGIC[..], &checksum.to_le_bytes(), &data].concat();
        let written = std::fs::create_dir_all(folder).and_then(|()| partial_file::write(&self.path, &file));
        // Without it the next start compiles again, and nothing else is lost.
        written.unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WgpuOptions;

    fn with_checksum(data: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &checksum(data).to_le_bytes(), data].concat()
    }

    #[test]
    fn only_whole_files_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        assert_eq!(load(&path), None);
        let whole = with_checksum(&[7; 100]);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(load(&path), Some(vec![7; 100]));
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(load(&path), None, "cut to {len}");
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(load(&path), None, "bit {bit}");
        }
    }

    /// A device, where there is one that keeps pipelines.
    fn device() -> Option<Device> {
        let device = Device::open(None, &WgpuOptions::default()).ok().filter(|d| d.pipeline_cache);
        if device.is_none() {
            eprintln!("SKIPPED: no wgpu adapter that keeps pipelines; install mesa-vulkan-drivers");
        }
        device
    }

    /// Compiles one pipeline through the cache.
    fn compile(device: &Device, cache: &DiskCache, number: u32) {
        let text = format!("@compute @workgroup_size({number}) fn main() {{ }}");
        let module = device.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(text.into()),
        });
        let _ = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: Some(&cache.cache),
        });
        device.check().unwrap();
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn what_was_saved_is_loaded_and_not_written_again() {
        let Some(device) = device() else { return };
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("not yet").join("there");
        let first = DiskCache::open_in(&device, &folder).unwrap();
        assert_eq!(first.loaded, None);
        compile(&device, &first, 1);
        first.save();
        assert_eq!(files(&folder), vec![first.path.clone()]);
        let saved = load(&first.path).unwrap();

        let second = DiskCache::open_in(&device, &folder).unwrap();
        assert_eq!(second.loaded, Some(checksum(&saved)));
        std::fs::remove_file(&second.path).unwrap();
        compile(&device, &second, 1);
        second.save();
        assert!(files(&folder).is_empty(), "it has not grown");
        // (Software Vulkan keeps pipelines in a cache of its own and never has more to say than its header.)
        std::fs::write(&second.path, with_checksum(b"of an earlier version")).unwrap();
        let third = DiskCache::open_in(&device, &folder).unwrap();
        third.save();
        assert_eq!(load(&third.path).map(|data| data[..64] == saved[..64]), Some(true));
    }

    /// Another driver's, another adapter's (which wgpu refuses whatever it may fall back to), and none at all.
    #[test]
    fn foreign_data_and_unwritable_folders_are_no_failure() {
        let Some(device) = device() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open_in(&device, folder.path()).unwrap();
        compile(&device, &cache, 1);
        cache.save();
        let saved = load(&cache.path).unwrap();
        // wgpu's header: the adapter's key begins at 17, the driver's at 32, the driver's own data at 64.
        for (what, begin, end) in [("adapter", 17, 32), ("driver", 32, 48), ("data", 64, saved.len())] {
            let mut foreign = saved.clone();
            foreign[begin..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
            std::fs::write(&cache.path, with_checksum(&foreign)).unwrap();
            let opened = DiskCache::open_in(&device, folder.path());
            assert_eq!(opened.is_none(), what == "adapter");
            device.check().unwrap();
            let Some(opened) = opened else { continue };
            compile(&device, &opened, 3);
            opened.save();
            assert!(load(&cache.path).is_some_and(|data| data != foreign), "{what}");
        }
        let unwritable = DiskCache::open_in(&device, &cache.path).unwrap();
        compile(&device, &unwritable, 1);
        unwritable.save();
        device.check().unwrap();
        assert_eq!(files(folder.path()), vec![cache.path]);
    }

    /// Whoever reads meanwhile finds a whole file.
    #[test]
    fn many_may_save_at_once() {
        let Some(device) = device() else { return };
        let folder = tempfile::tempdir().unwrap();
        let caches: Vec<DiskCache> =
            (0..4).map(|_| DiskCache::open_in(&device, folder.path()).unwrap()).collect();
        for (i, cache) in caches.iter().enumerate() {
            compile(&device, cache, 1 + i as u32);
        }
        caches[0].save();
        std::thread::scope(|scope| {
            for cache in &caches {
                scope.spawn(|| {
                    for _ in 0..50 {
                        cache.save();
                        assert!(load(&cache.path).is_some());
                    }
                });
            }
        });
        assert_eq!(files(folder.path()), vec![caches[0].path.clone()]);
    }
}
