//! The CPU's decode loop allocates nothing: counted by the allocator itself, over all threads.

use moe_run_backends::cpu::Cpu;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::fixtures;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_token_of_the_cpu_allocates_nothing() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let options = CompileOptions { ctx_size: 128, threads: Some(2), ..CompileOptions::default() };
    let executable = Cpu.compile(&model.graph, model.file.clone(), &options).unwrap();
    let mut session = Session::new(executable).unwrap();
    session.feed(&[3070, 303, 198].map(TokenId), LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    let mut token = session.argmax().unwrap();
    // The session's list of tokens grows in powers of two: start behind one, end before the next.
    for _ in 0..30 {
        session.decode(token, None).unwrap();
        token = session.argmax().unwrap();
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..20 {
        session.decode(token, None).unwrap();
    }
    let steps = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(steps, 0, "allocations in 20 tokens");
}
