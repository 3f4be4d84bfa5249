//! Model files are mapped, so one that is cut while it is in use makes the processor fault where it was: SIGBUS, which would
//! end the process without a word. Here that becomes one line and an exit code, with no unfinished file left behind.
//!
//! The handler itself only hands the address to a thread that waits for it, and waits to be ended: what a handler may do is
//! not enough to remove files, and the thread that faulted was reading weights, so it holds no lock that this takes. A
//! SIGBUS that has nothing to do with a model file goes where it went before.
//!
//! A file that is written to but not cut does not fault: [`partial_file::check_mapped`] tells of it between steps.

use std::path::Path;

use moe_run_backends::partial_file;
use moe_run_graph::gguf::GgufFile;

use crate::{CliError, inputs};

/// Opens a GGUF file, notes its parts as what the command reads, and guards them.
///
/// Errors: what opening reports; the system refuses a handler or a thread.
pub fn open(path: &Path, what: &'static str) -> Result<GgufFile, CliError> {
    #[cfg(unix)]
    sigbus::install().map_err(CliError::failed)?;
    let file = GgufFile::open_with(path, |mapped| {
        partial_file::add_mapped(mapped, what);
        #[cfg(unix)]
        sigbus::guard(mapped.addresses());
    })?;
    inputs::check_streams()?;
    Ok(file)
}

#[cfg(unix)]
mod sigbus {
    use std::{
        fs::File,
        io::{self, PipeReader, Read, Write},
        mem,
        ops::Range,
        os::fd::{AsFd, IntoRawFd, RawFd},
        ptr,
        sync::{
            OnceLock,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use moe_run_backends::partial_file;
    use moe_run_graph::shown::shown_path;

    use crate::ExitCode;

    /// What is said where the file is not known any more.
    const A_MODEL: &str = "a model";
    /// The handler's last words, should the thread be held up.
    const ANY: &[u8] = b"error: the model's file was changed or cut while it was in use\n";
    /// How long the handler waits for the thread, in steps of 100 ms.
    const STEPS: usize = 100;
    const STEP_MS: i32 = 100;

    /// Guarded addresses, as a list that only grows: a handler can read it whatever it interrupted.
    struct Node {
        addresses: Range<usize>,
        next: OnceLock<&'static Node>,
    }

    static FIRST: OnceLock<&'static Node> = OnceLock::new();
    /// Where the handler writes to.
    static WAKE: OnceLock<RawFd> = OnceLock::new();
    /// What a SIGBUS did before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// Adds addresses. What is mapped there stays mapped: [`partial_file::add_mapped`] holds it.
    pub fn guard(addresses: Range<usize>) {
        let mut node: &'static Node = Box::leak(Box::new(Node { addresses, next: OnceLock::new() }));
        let mut end = &FIRST;
        while let Err(other) = end.set(node) {
            node = other;
            match end.get() {
                Some(taken) => end = &taken.next,
                None => return,
            }
        }
    }

    fn is_guarded(address: usize) -> bool {
        let mut next = FIRST.get();
        while let Some(node) = next {
            if node.addresses.contains(&address) {
                return true;
            }
            next = node.next.get();
        }
        false
    }

    /// Takes over SIGBUS, once.
    pub fn install() -> io::Result<()> {
        static INSTALLED: AtomicBool = AtomicBool::new(false);
        if INSTALLED.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let (reader, writer) = io::pipe()?;
        thread::Builder::new().name("sigbus".to_owned()).spawn(move || end_process(reader))?;
        let _ = WAKE.set(writer.into_raw_fd()); // set once: there is one installation
        // SAFETY: all of it is plain data, for which zeros are valid.
        let mut before: libc::sigaction = unsafe { mem::zeroed() };
        // SAFETY: `before` outlives the call; no new action is given.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let _ = BEFORE.set(before);
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        // On the stack for signals where the thread has one: the fault may come near the end of its own.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a handler may: it reads atomics
        // and calls write, poll, sigaction, raise and _exit.
        if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
        // SAFETY: the system gives a valid `info` to a handler with SA_SIGINFO; a fault's has an address, and another's is
        // not looked at.
        let (sent, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr().addr()) };
        if let (false, true, Some(wake)) = (sent, is_guarded(address), WAKE.get()) {
            let bytes = address.to_ne_bytes();
            // SAFETY: the bytes are this function's; the descriptor is open as long as the process.
            let _ = unsafe { libc::write(*wake, bytes.as_ptr().cast(), bytes.len()) };
            for _ in 0..STEPS {
                // SAFETY: no descriptors are given: it only waits.
                unsafe { libc::poll(ptr::null_mut(), 0, STEP_MS) };
            }
            // SAFETY: the bytes are static.
            let _ = unsafe { libc::write(libc::STDERR_FILENO, ANY.as_ptr().cast(), ANY.len()) };
            // SAFETY: it ends the process, and runs nothing.
            unsafe { libc::_exit(ExitCode::Failed as i32) };
        }
        if let Some(before) = BEFORE.get() {
            // SAFETY: `before` is what the system gave. The fault comes again at the return, and then is dealt with so.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
        if sent {
            // SAFETY: a signal that was sent does not come again by itself.
            unsafe { libc::raise(signal) };
        }
    }

    /// Waits for the handler, cleans up, says why, and ends the process.
    fn end_process(mut reader: PipeReader) {
        let mut address = [0; mem::size_of::<usize>()];
        if reader.read_exact(&mut address).is_err() {
            return; // it is never closed
        }
        partial_file::remove_unfinished();
        let file = partial_file::mapped_at(usize::from_ne_bytes(address));
        let file = file.map_or_else(|| A_MODEL.to_owned(), |path| shown_path(&path).to_string());
        let line = format!(
            "error: {file}: the model's file was changed or cut while it was in use, or its disk cannot be read any more; \
             leave the file alone while it is open, and start again\n"
        );
        // Without the lock of standard error, which the thread that faulted may hold.
        if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
            let _ = File::from(stderr).write_all(line.as_bytes());
        }
        // SAFETY: it ends the process. Nothing is to run at its end: other threads may still read weights.
        unsafe { libc::_exit(ExitCode::Failed as i32) };
    }
}
