//! Kernels by name: modules of PTX that the driver compiles for its chip when they are first asked for, several at a time.

use super::super::DriverError;
use super::super::code::{self, Code};
use super::failed;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The driver's compiler explains itself in this many bytes.
const LOG_BYTES: usize = 4096;

/// A loaded module.
#[derive(Clone, Copy)]
struct Module(sys::CUmodule);

// SAFETY: a handle of the driver's, which takes it from any thread that has set the context.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// One module, loaded by the first who needs it while others wait.
type Slot = Arc<OnceLock<Result<Module, DriverError>>>;

/// All that has been loaded. The context must be current in every call.
pub(super) struct Modules {
    code: Code,
    slots: Mutex<HashMap<&'static str, Slot>>,
    functions: Mutex<HashMap<&'static str, sys::CUfunction>>,
    /// Blocks that a multiprocessor holds of a kernel, by its name, its threads and its dynamic shared memory.
    resident: Mutex<HashMap<(&'static str, u32, u32), u32>>,
}

impl Modules {
    pub fn new(code: Code) -> Modules {
        Modules { code, slots: Mutex::default(), functions: Mutex::default(), resident: Mutex::default() }
    }

    /// The modules of these kernels that nobody has asked for yet, each once.
    pub fn not_loaded(&self, kernels: &[&str]) -> Vec<code::Module> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: Vec<_> = kernels.iter().filter_map(|kernel| self.code.module_of(kernel)).collect();
        wanted.retain(|(name, _)| !slots.contains_key(name));
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// Loads a module, if nobody has yet; what went wrong is told to whoever asks for one of its kernels.
    pub fn load(&self, (name, text): code::Module) {
        let _ = self.module(name, text);
    }

    fn module(&self, name: &'static str, text: &str) -> Result<Module, DriverError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(name).or_default())
        };
        slot.get_or_init(|| compile(name, text)).clone()
    }

    /// A kernel's handle.
    pub fn function(&self, kernel: &'static str) -> Result<sys::CUfunction, DriverError> {
        let known = self.functions.lock().unwrap_or_else(PoisonError::into_inner).get(kernel).copied();
        if let Some(function) = known {
            return Ok(function);
        }
        let (name, text) = self
            .code
            .module_of(kernel)
            .ok_or_else(|| DriverError::Failed(format!("no embedded code for kernel {kernel}")))?;
        let module = self.module(name, text)?;
        let c_name =
            CString::new(kernel).map_err(|e| DriverError::Failed(format!("kernel {kernel}: {e}")))?;
        // SAFETY: the module is loaded, and is unloaded only by `unload`.
        let function = unsafe { result::module::get_function(module.0, c_name) }
            .map_err(|e| failed(&format!("kernel {kernel}"), e))?;
        self.functions.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel, function);
        Ok(function)
    }

    /// How many blocks of a kernel a multiprocessor holds at once, as the driver says.
    pub fn resident_blocks(
        &self,
        kernel: &'static str,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, DriverError> {
        let key = (kernel, threads, shared_bytes);
        let known = self.resident.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(blocks) = known {
            return Ok(blocks);
        }
        let function = self.function(kernel)?;
        let (threads, bytes) = (threads as i32, shared_bytes as usize);
        // SAFETY: the function belongs to a loaded module.
        let found =
            unsafe { result::occupancy::max_active_block_per_multiprocessor(function, threads, bytes) };
        let blocks = found.map_err(|e| failed(&format!("the occupancy of kernel {kernel}"), e))?;
        let blocks = u32::try_from(blocks).unwrap_or(0).max(1);
        self.resident.lock().unwrap_or_else(PoisonError::into_inner).insert(key, blocks);
        Ok(blocks)
    }

    /// Unloads everything.
    ///
    /// # Safety
    /// Nothing that was loaded is running or used after this.
    pub unsafe fn unload(&mut self) {
        let slots = self.slots.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in slots.drain().filter_map(|(_, slot)| slot.get().cloned()).flatten() {
            // SAFETY: loaded by `compile`; unused from now on, as the caller states.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

/// Has the driver compile a module for its chip; it keeps the result on disk.
fn compile(name: &str, text: &str) -> Result<Module, DriverError> {
    let text = CString::new(text).map_err(|e| DriverError::Failed(format!("PTX of {name}: {e}")))?;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The second value is a number in the place of a pointer, as the driver takes it.
    let mut values =
        [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut::<c_void>(LOG_BYTES)];
    let mut module = std::ptr::null_mut();
    // SAFETY: the text is NUL-terminated PTX; two options with two values, the log as long as stated.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast::<c_void>(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    loaded.result().map(|()| Module(module)).map_err(|e| {
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        let said = String::from_utf8_lossy(&log[..end]);
        failed(&format!("loading kernels {name}: {}", said.trim()), e)
    })
}
