//! Weights to the device, through page-locked memory.
//!
//! Input: tensors of the mapped file. Output: device memory as kernels read it. Several threads take parts of tensors in
//! turn; each arranges one part (planes.rs) into its own staging memory while the device still copies its last one, so reading
//! the file, sorting and copying overlap. Host memory is bounded: [`THREADS`] · 2 · [`STAGING_BYTES`] beside the mapping.

use super::device;
use super::driver::{DeviceBuffer, Driver, DriverError, Staging};
use super::planes;
use moe_run_graph::ir::WeightDecl;
use moe_run_graph::quant::Format;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Progress, WeightSource, WeightTable};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads that read and sort: enough to keep up with a bus of 50 GB/s where the file is in memory.
const THREADS: usize = 6;
/// One staging memory; each thread has two in turn.
const STAGING_BYTES: usize = 8 << 20;

/// A stretch of a tensor's rows.
struct Part<'a> {
    format: Format,
    elems: usize,
    /// Of the tensor, from the first of these on.
    rows_left: usize,
    rows: &'a [u8],
    address: u64,
    device_bytes: usize,
}

/// Rows of a tensor: elements of one, and their number. A tensor without whole rows counts as one.
fn rows_of(decl: &WeightDecl) -> (usize, usize) {
    let elems = decl.shape.last().copied().unwrap_or(0);
    (elems, decl.shape[..decl.shape.len().saturating_sub(1)].iter().product())
}

/// Bytes of a weight on the device.
pub(super) fn device_bytes(decl: &WeightDecl, is_matrix: bool) -> u64 {
    let (elems, rows) = rows_of(decl);
    let matrix = || rows * planes::row_bytes(decl.format, elems) + planes::grid(decl.format).len();
    if is_matrix { matrix() as u64 } else { 4 * (rows * elems) as u64 }
}

/// Bytes of all weights on the device.
pub(super) fn wanted_bytes(table: &WeightTable) -> u64 {
    table.decls().iter().map(|decl| device_bytes(decl, table.is_matrix(decl.id))).sum()
}

/// Uploads every weight of the table, whose sizes have been checked: one buffer for each, in order.
pub(super) fn upload(
    driver: &Arc<dyn Driver>,
    table: &WeightTable,
    source: &dyn WeightSource,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<Vec<DeviceBuffer>, BackendError> {
    let failed = |e| device::error(&driver.info().name, e);
    let mut buffers = Vec::with_capacity(table.decls().len());
    let mut parts = Vec::new();
    for decl in table.decls() {
        let matrix = table.is_matrix(decl.id);
        let bytes = source.weight(decl).unwrap_or_default();
        let (elems, rows) = rows_of(decl);
        let buffer = DeviceBuffer::new(driver, device_bytes(decl, matrix)).map_err(failed)?;
        let to = planes::row_bytes(decl.format, elems);
        let grid = planes::grid(decl.format);
        if matrix && !grid.is_empty() {
            driver.upload(buffer.address() + (rows * to) as u64, grid).map_err(failed)?;
        }
        if matrix && to > 0 && to <= STAGING_BYTES {
            let from = bytes.len() / rows.max(1);
            let most = STAGING_BYTES / to;
            for (i, part) in bytes.chunks((most * from).max(1)).enumerate() {
                let address = buffer.address() + (i * most * to) as u64;
                let device_bytes = part.len() / from.max(1) * to;
                let rows_left = rows - i * most;
                parts.push(Part { format: decl.format, elems, rows_left, rows: part, address, device_bytes });
            }
        } else if matrix {
            // Rows wider than a staging memory: no model has them, but a file may.
            let mut arranged = vec![0; rows * to];
            planes::arrange(decl.format, elems, rows, bytes, &mut arranged);
            driver.upload(buffer.address(), &arranged).map_err(failed)?;
        } else {
            let mut values = vec![0.0f32; rows * elems];
            decl.format.decode_row(bytes, &mut values);
            driver.upload(buffer.address(), bytemuck::cast_slice(&values)).map_err(failed)?;
        }
        buffers.push(buffer);
    }
    // Biggest first would even out the threads; in file order the disk reads ahead, which is worth more.
    copy_all(&**driver, &parts, wanted_bytes(table), progress).map_err(failed)?;
    Ok(buffers)
}

/// All parts, by several threads; the first error of any.
fn copy_all(
    driver: &dyn Driver,
    parts: &[Part<'_>],
    total: u64,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<(), DriverError> {
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let first_error: Mutex<Option<DriverError>> = Mutex::default();
    let work = || -> Result<(), DriverError> {
        let mut staging: [Box<dyn Staging>; 2] =
            [driver.staging(STAGING_BYTES)?, driver.staging(STAGING_BYTES)?];
        for turn in (0..2).cycle() {
            let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let memory = staging[turn].memory()?;
            let to = &mut memory[..part.device_bytes];
            planes::arrange(part.format, part.elems, part.rows_left, part.rows, to);
            staging[turn].send(part.address, part.device_bytes)?;
            let bytes = part.device_bytes as u64;
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if let Some(progress) = progress {
                progress(Progress { done, total, what: "uploading weights" });
            }
        }
        staging.iter_mut().try_for_each(|s| s.memory().map(|_| ()))
    };
    let threads = THREADS.min(parts.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = work() {
                    stop.store(true, Ordering::Relaxed);
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
