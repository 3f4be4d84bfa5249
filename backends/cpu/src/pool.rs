//! Stage 6: the threads that every CPU step runs on.
//!
//! Input: a job, one function that all workers run side by side. Inside it they meet at barriers, and between two
//! barriers they draw chunk numbers from one shared counter. Which worker gets which chunk is left to chance, so a
//! chunk's result must depend on its number alone: then any thread count gives the same bits.
//! Deliberately absent: futures, per-task allocation, nesting, and any work that outlives [`Pool::run`].

use std::io;
use std::num::NonZeroUsize;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Pauses before a waiting thread gives its core away: some tens of µs, longer than any balanced wait inside a step.
const SPINS_BEFORE_YIELD: u32 = 1 << 11;
/// Yields before an idle worker sleeps; a token's sampling and printing fit into that.
const YIELDS_BEFORE_SLEEP: u32 = 1 << 9;

/// A value on cache lines of its own (two, for the adjacent-line prefetcher).
#[repr(align(128))]
#[derive(Default)]
struct Padded<T>(T);

/// A job with its lifetime erased; [`Pool::run`] keeps it alive until every worker is done.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(&mut Worker<'_>) + Sync));

// SAFETY: the pointee is Sync, and `Pool::run` outlives every use of the pointer.
unsafe impl Send for Job {}

struct Shared {
    threads: usize,
    /// Jobs started so far; workers wait for it to move.
    epoch: Padded<AtomicU64>,
    /// Workers (the caller not counted) that have finished the current job.
    finished: Padded<AtomicUsize>,
    barrier_arrived: Padded<AtomicUsize>,
    barrier_generation: Padded<AtomicU64>,
    next_chunk: Padded<AtomicUsize>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// The job of the current epoch; also what sleepers hold while they wait.
    job: Mutex<Option<Job>>,
    wake: Condvar,
    sleepers: AtomicUsize,
}

/// A persistent team of threads; the caller of [`Pool::run`] is its first member.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

/// One member of the team inside a job.
pub struct Worker<'a> {
    index: usize,
    shared: &'a Shared,
    generation: u64,
}

impl Worker<'_> {
    /// This member's number, below [`Worker::threads`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// Members in the team.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Waits until every member has arrived, then starts the chunk count at 0 again. What members wrote before it,
    /// all may read after it. Every member meets the same barriers.
    pub fn barrier(&mut self) {
        let shared = self.shared;
        if shared.threads == 1 {
            shared.next_chunk.0.store(0, Ordering::Relaxed);
            return;
        }
        let generation = self.generation;
        self.generation = generation + 1;
        if shared.barrier_arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.threads {
            shared.barrier_arrived.0.store(0, Ordering::Relaxed);
            shared.next_chunk.0.store(0, Ordering::Relaxed);
            shared.barrier_generation.0.store(generation + 1, Ordering::Release);
        } else {
            wait_until(|| {
                assert!(!shared.panicked.load(Ordering::Relaxed), "another worker of the CPU pool panicked");
                shared.barrier_generation.0.load(Ordering::Acquire) != generation
            });
        }
    }

    /// The chunk numbers below `count` that fall to this member; each number goes to exactly one. At most one such
    /// loop may run between two barriers.
    pub fn chunks(&self, count: usize) -> impl Iterator<Item = usize> + '_ {
        let next = &self.shared.next_chunk.0;
        let alone = self.shared.threads == 1;
        std::iter::from_fn(move || {
            let chunk = if alone {
                let chunk = next.load(Ordering::Relaxed);
                next.store(chunk + 1, Ordering::Relaxed);
                chunk
            } else {
                next.fetch_add(1, Ordering::Relaxed)
            };
            (chunk < count).then_some(chunk)
        })
    }
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let mut spins = 0u32;
    while !done() {
        if spins < SPINS_BEFORE_YIELD {
            spins += 1;
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}

impl Pool {
    /// Starts `threads − 1` threads beside the caller's.
    ///
    /// # Errors
    /// What the system says when it cannot start a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Pool> {
        let shared = Arc::new(Shared {
            threads: threads.get(),
            epoch: Padded::default(),
            finished: Padded::default(),
            barrier_arrived: Padded::default(),
            barrier_generation: Padded::default(),
            next_chunk: Padded::default(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: Mutex::new(None),
            wake: Condvar::new(),
            sleepers: AtomicUsize::new(0),
        });
        let mut pool = Pool { shared, handles: Vec::new() };
        for index in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("moe-run-cpu-{index}"));
            pool.handles.push(builder.spawn(move || work(index, &shared))?);
        }
        Ok(pool)
    }

    /// Members of the team, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `job` once on every member at the same time and returns when all have finished.
    ///
    /// # Panics
    /// When the job panics on any member.
    pub fn run(&mut self, job: &(dyn Fn(&mut Worker<'_>) + Sync)) {
        let shared = &*self.shared;
        // A job that panicked may have left these behind; no worker is active here.
        shared.next_chunk.0.store(0, Ordering::Relaxed);
        shared.barrier_arrived.0.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        let generation = shared.barrier_generation.0.load(Ordering::Relaxed);
        let mut worker = Worker { index: 0, shared, generation };
        if shared.threads == 1 {
            return job(&mut worker);
        }
        // SAFETY: only the lifetime changes. The workers use the pointer until they count themselves in `finished`,
        // which is awaited below before `job` can go out of scope, also when it panics here.
        let erased = Job(unsafe {
            std::mem::transmute::<
                *const (dyn Fn(&mut Worker<'_>) + Sync + '_),
                *const (dyn Fn(&mut Worker<'_>) + Sync),
            >(job)
        });
        shared.finished.0.store(0, Ordering::Relaxed);
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(erased);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.job.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| job(&mut worker)));
        if outcome.is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        wait_until(|| shared.finished.0.load(Ordering::Acquire) + 1 == shared.threads);
        if let Err(payload) = outcome {
            panic::resume_unwind(payload);
        }
        assert!(!shared.panicked.load(Ordering::Relaxed), "a worker of the CPU pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.job.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for handle in self.handles.drain(..) {
            // A worker's panic has been reported by `run`.
            let _ = handle.join();
        }
    }
}

fn work(index: usize, shared: &Shared) {
    let mut seen = 0u64;
    loop {
        wait_for_job(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        seen = shared.epoch.0.load(Ordering::SeqCst);
        let Some(job) = *shared.job.lock().unwrap_or_else(PoisonError::into_inner) else { continue };
        // A barrier cannot complete before this worker has arrived, so the generation is still that of the start.
        let generation = shared.barrier_generation.0.load(Ordering::Acquire);
        let mut worker = Worker { index, shared, generation };
        // SAFETY: `Pool::run` waits for `finished` before the job's lifetime ends.
        let job = unsafe { &*job.0 };
        if panic::catch_unwind(AssertUnwindSafe(|| job(&mut worker))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.finished.0.fetch_add(1, Ordering::AcqRel);
    }
}

fn wait_for_job(shared: &Shared, seen: u64) {
    let moved = || shared.epoch.0.load(Ordering::SeqCst) != seen;
    for round in 0..SPINS_BEFORE_YIELD + YIELDS_BEFORE_SLEEP {
        if moved() {
            return;
        }
        if round < SPINS_BEFORE_YIELD {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
    // `sleepers` rises before the last look at `epoch`, and `run` moves `epoch` before it looks at `sleepers`: one of
    // the two sees the other.
    shared.sleepers.fetch_add(1, Ordering::SeqCst);
    let mut guard = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
    while !moved() {
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    drop(guard);
    shared.sleepers.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_chunk_runs_exactly_once_in_every_phase() {
        for threads in [1, 2, 3, 5] {
            let mut pool = pool(threads);
            let counts: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..=20 {
                pool.run(&|worker| {
                    for phase in 1..=4 {
                        for chunk in worker.chunks(counts.len()) {
                            counts[chunk].fetch_add(1, Ordering::Relaxed);
                        }
                        worker.barrier();
                        // All of the phase is visible to everyone after the barrier.
                        let want = (round - 1) * 4 + phase;
                        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == want));
                        worker.barrier();
                    }
                });
            }
        }
    }

    #[test]
    fn wakes_after_sleeping() {
        let mut pool = pool(3);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(30));
            let ran = AtomicUsize::new(0);
            pool.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 3);
        }
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller() {
        let mut pool = pool(2);
        let caught = panic::catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                assert_ne!(worker.index(), 1, "wanted");
                worker.barrier();
            });
        }));
        assert!(caught.is_err());
    }
}
