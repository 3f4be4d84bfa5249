//! Page-locked host memory: weights on their way to the device, small results on their way back.

use super::super::{DriverError, Mailbox, Staging};
use super::{Event, Inner, failed};
use cudarc::driver::result;
use std::sync::Arc;

/// Page-locked host memory, which the device reads on its own while the host goes on.
///
/// The event stands before the driver: fields are dropped in their order, and what is dropped last may be the driver's last
/// owner, after which there is no context any more.
pub(super) struct Pinned {
    /// Recorded behind the last copy.
    copied: Event,
    in_flight: bool,
    memory: *mut u8,
    bytes: usize,
    /// For errors.
    what: &'static str,
    inner: Arc<Inner>,
}

// SAFETY: the memory and the event belong to this object alone; the driver takes calls from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `what` names the copies in errors.
    pub fn new(inner: &Arc<Inner>, bytes: usize, what: &'static str) -> Result<Pinned, DriverError> {
        inner.enter()?;
        let copied = Event::untimed()?;
        // SAFETY: a fresh allocation, freed when this object is dropped.
        let memory =
            unsafe { result::malloc_host(bytes, 0) }.map_err(|e| failed("page-locked host memory", e))?;
        let memory = memory.cast::<u8>();
        // SAFETY: the allocation is of that size.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Pinned { copied, in_flight: false, memory, bytes, what, inner: Arc::clone(inner) })
    }

    /// Says that a copy was queued.
    fn record(&mut self, queued: Result<(), result::DriverError>) -> Result<(), DriverError> {
        // SAFETY: event and stream are live.
        let recorded =
            queued.and_then(|()| unsafe { result::event::record(self.copied.0, self.inner.stream) });
        recorded.map_err(|e| failed(self.what, e))?;
        self.in_flight = true;
        Ok(())
    }

    fn wait(&mut self) -> Result<(), DriverError> {
        if std::mem::take(&mut self.in_flight) {
            self.inner.enter()?;
            // SAFETY: the event is live and was recorded.
            unsafe { result::event::synchronize(self.copied.0) }.map_err(|e| failed(self.what, e))?;
        }
        Ok(())
    }
}

impl Staging for Pinned {
    fn memory(&mut self) -> Result<&mut [u8], DriverError> {
        self.wait()?;
        // SAFETY: the allocation is of that size, was zeroed when it was made, and no copy reads it any more.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) })
    }

    fn send(&mut self, address: u64, bytes: usize) -> Result<(), DriverError> {
        self.wait()?;
        self.inner.enter()?;
        // SAFETY: as in `memory`; while the copy runs, `in_flight` keeps everybody from the memory.
        let source = unsafe { std::slice::from_raw_parts(self.memory, bytes.min(self.bytes)) };
        // SAFETY: the address is of an allocation at least as long, by the callers' arithmetic; source and stream are live.
        let queued = unsafe { result::memcpy_htod_async(address, source, self.inner.stream) };
        self.record(queued)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.wait();
        if self.inner.enter().is_ok() {
            // SAFETY: made by `staging`, read by no copy any more.
            let _ = unsafe { result::free_host(self.memory.cast()) };
        }
    }
}

/// Results on their way to the host.
pub(super) struct Letter {
    pub pinned: Pinned,
    pub posted_bytes: usize,
}

impl Mailbox for Letter {
    fn post(&mut self, parts: &[(u64, usize)]) -> Result<(), DriverError> {
        self.pinned.wait()?;
        self.pinned.inner.enter()?;
        let mut at = 0;
        for (address, bytes) in parts {
            if at + bytes > self.pinned.bytes {
                return Err(DriverError::Failed(format!("results of more than {} bytes", self.pinned.bytes)));
            }
            // SAFETY: inside the allocation, by the check above; no copy writes to it, since the last was waited for.
            let target = unsafe { std::slice::from_raw_parts_mut(self.pinned.memory.add(at), *bytes) };
            // SAFETY: the address is of an allocation at least as long; nobody reads the target before the event.
            let queued = unsafe { result::memcpy_dtoh_async(target, *address, self.pinned.inner.stream) };
            self.pinned.record(queued)?;
            at += bytes;
        }
        self.posted_bytes = at;
        Ok(())
    }

    fn read(&mut self) -> Result<Vec<u8>, DriverError> {
        let bytes = self.posted_bytes;
        self.pinned.memory().map(|memory| memory[..bytes].to_vec())
    }
}
