//! The thread that owns a scheduler, and the way to it.

use super::{Meter, Request, Scheduler, Settings};
use crate::error::BackendError;
use crate::sequences::Sequences;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("the queue is full: {wanted} requests more than the {capacity} that run or may wait")]
    QueueFull {
        /// Requests that came together.
        wanted: usize,
        /// Running and waiting ones at most.
        capacity: usize,
    },
    /// The engine has ended.
    #[error("the engine has ended")]
    Ended,
}

enum Message {
    Submit(Vec<Request>),
    End,
}

/// A scheduler on a thread of its own.
#[derive(Debug)]
pub struct Engine {
    sender: Sender<Message>,
    meter: Arc<Meter>,
    capacity: usize,
    thread: Mutex<Option<JoinHandle<Scheduler>>>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// As [`Scheduler::new`]; [`BackendError::Input`] where the operating system gives no thread.
    pub fn start(sequences: Sequences, settings: Settings) -> Result<Engine, BackendError> {
        let capacity = sequences.max_sequences() + settings.max_queue;
        let scheduler = Scheduler::new(sequences, settings)?;
        let meter = scheduler.meter();
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || work(scheduler, &receiver))
            .map_err(|e| BackendError::Input(format!("a thread for the engine: {e}")))?;
        Ok(Engine { sender, meter, capacity, thread: Mutex::new(Some(thread)) })
    }

    /// What is counted.
    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Requests that run or wait at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes requests into the queue, all or none.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn submit(&self, requests: Vec<Request>) -> Result<(), Refused> {
        let wanted = requests.len();
        let fits = |taken: usize| taken.checked_add(wanted).filter(|sum| *sum <= self.capacity);
        let taken = &self.meter.taken;
        taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .map_err(|_| Refused::QueueFull { wanted, capacity: self.capacity })?;
        self.sender.send(Message::Submit(requests)).map_err(|_| Refused::Ended)
    }

    /// Ends the thread behind the step that runs, and gives its sequences, all of them closed; once. Requests that are not
    /// complete hear nothing more, and their listeners are dropped.
    pub fn end(&self) -> Option<Sequences> {
        let _ = self.sender.send(Message::End);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A thread that panicked has said so itself.
        thread?.join().ok().map(Scheduler::into_sequences)
    }
}

/// Steps while there is anything to do.
fn work(mut scheduler: Scheduler, receiver: &Receiver<Message>) -> Scheduler {
    loop {
        let message = match scheduler.is_idle() {
            true => receiver.recv().map_err(|_| TryRecvError::Disconnected),
            false => receiver.try_recv(),
        };
        match message {
            Ok(Message::Submit(requests)) => requests.into_iter().for_each(|r| scheduler.submit(r)),
            Ok(Message::End) | Err(TryRecvError::Disconnected) => return scheduler,
            Err(TryRecvError::Empty) => scheduler.step(),
        }
    }
}
