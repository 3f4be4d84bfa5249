// Runs kernels on the CPU: the block scheduler behind host.h. See there for what is checked.
//
// Threads of a block are fibers: each has a stack, a switch saves the callee-saved registers and swaps stack pointers.
// A fiber runs until it waits (barrier, warp collective) or ends; then the next runnable one in schedule order runs.
#include "host.h"

#include <cstdarg>
#include <cstdlib>
#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace moe_host {

namespace {

constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / 32;
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t SHARED_LIMIT_BYTES = 227 * 1024;
constexpr int MAX_SHARED_ARRAYS = 64;
constexpr int ERROR_CHARS = 512;
// What a block before left behind would hide a read of shared memory that nobody wrote: all ones is a NaN and -1.
constexpr int POISON = 0xff;

enum State : int { READY, WAIT_WARP, WAIT_BLOCK, DONE };

struct Fiber {
    Thread thread;
    State state;
    unsigned warp_phase;  // warp collectives entered
    unsigned block_phase; // block barriers entered
    void *stack_pointer;
#if !defined(__x86_64__) && !defined(__aarch64__)
    ucontext_t context;
#endif
};

struct Warp {
    uint64_t slots[2][32];
    unsigned arrived, completed;
    int operation;
};

struct SharedArray {
    const void *key;
    size_t offset, bytes;
};

// Everything one operating-system thread needs to run launches; made on first use, given back by
// moe_host_release_thread. Its size is a multiple of its alignment, so the stacks behind it are aligned too.
struct alignas(256) Machine {
    Fiber fibers[MAX_THREADS];
    Warp warps[MAX_WARPS];
    char *stacks;
    alignas(256) unsigned char shared[SHARED_LIMIT_BYTES];
    SharedArray arrays[MAX_SHARED_ARRAYS];
    int array_count;
    size_t shared_used, dynamic_bytes, shared_limit;
    unsigned barrier_arrived, barrier_completed;
    int threads, running, reversed;
    const Kernel *kernel;
    const Param *params;
    void *main_stack;
#if !defined(__x86_64__) && !defined(__aarch64__)
    ucontext_t main_context;
#endif
    bool failed;
    char *error;
};

__thread Machine *machine = nullptr;

Kernel *kernels = nullptr;

} // namespace

__thread const Thread *current = nullptr;

Kernel::Kernel(const char *n, const uint32_t *k, size_t c, void (*r)(const Param *), int threads)
    : name(n), kinds(k), count(c), run(r), max_threads(threads), next(kernels) {
    kernels = this;
}

// ---- the switch ----------------------------------------------------------------------------------------------------

extern "C" void moe_host_fiber_main();

#if defined(__x86_64__)
extern "C" void moe_host_switch(void **save, void *load);
asm(R"(
.text
.globl moe_host_switch
.type moe_host_switch,@function
moe_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size moe_host_switch,.-moe_host_switch
)");
static void *fresh_stack(char *top) {
    void **sp = reinterpret_cast<void **>(top);
    // After the six pops and the return, rsp is 8 below a multiple of 16, as at any function's entry.
    *--sp = nullptr;
    *--sp = reinterpret_cast<void *>(&moe_host_fiber_main);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
extern "C" void moe_host_switch(void **save, void *load);
#if defined(__APPLE__)
#define MOE_SYMBOL "_moe_host_switch"
#else
#define MOE_SYMBOL "moe_host_switch"
#endif
asm(".text\n.globl " MOE_SYMBOL "\n.p2align 2\n" MOE_SYMBOL ":\n"
    "    sub sp, sp, #160\n"
    "    stp x19, x20, [sp, #0]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
    "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
    "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n    stp d12, d13, [sp, #128]\n"
    "    stp d14, d15, [sp, #144]\n"
    "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
    "    ldp x19, x20, [sp, #0]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
    "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
    "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n    ldp d12, d13, [sp, #128]\n"
    "    ldp d14, d15, [sp, #144]\n"
    "    add sp, sp, #160\n    ret\n");
static void *fresh_stack(char *top) {
    void **sp = reinterpret_cast<void **>(top) - 20;
    for (int i = 0; i < 20; i++) sp[i] = nullptr;
    sp[11] = reinterpret_cast<void *>(&moe_host_fiber_main); // x30: where the first switch returns to
    return sp;
}
#endif

static void switch_to_fiber(int from, int to) {
    Machine *m = machine;
    m->running = to;
    current = &m->fibers[to].thread;
#if defined(__x86_64__) || defined(__aarch64__)
    moe_host_switch(from < 0 ? &m->main_stack : &m->fibers[from].stack_pointer, m->fibers[to].stack_pointer);
#else
    swapcontext(from < 0 ? &m->main_context : &m->fibers[from].context, &m->fibers[to].context);
#endif
}

static void switch_to_main(int from) {
    Machine *m = machine;
#if defined(__x86_64__) || defined(__aarch64__)
    moe_host_switch(&m->fibers[from].stack_pointer, m->main_stack);
#else
    swapcontext(&m->fibers[from].context, &m->main_context);
#endif
}

// ---- errors --------------------------------------------------------------------------------------------------------

void fail(const char *format, ...) {
    Machine *m = machine;
    const Thread &t = *current;
    int n = snprintf(m->error, ERROR_CHARS, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", m->kernel->name,
                     t.block_idx.x, t.block_idx.y, t.block_idx.z, t.thread_idx.x, t.thread_idx.y, t.thread_idx.z);
    if (n > 0 && n < ERROR_CHARS) {
        va_list args;
        va_start(args, format);
        vsnprintf(m->error + n, ERROR_CHARS - n, format, args);
        va_end(args);
    }
    m->failed = true;
    // The block is abandoned: its fibers are never resumed, and kernels own nothing that would leak.
    switch_to_main(m->running);
    abort(); // not reached: nothing resumes this fiber
}

void bad_access(uint64_t address, size_t bytes, size_t align, uint64_t lo, uint64_t hi) {
    if (lo == 0) fail("access of %zu bytes through a null pointer (offset %llu)", bytes, (unsigned long long)address);
    long long offset = (long long)(address - lo);
    if (address < lo || address + bytes > hi)
        fail("access of %zu bytes at byte offset %lld of an array of %llu bytes", bytes, offset,
             (unsigned long long)(hi - lo));
    fail("access of %zu bytes at byte offset %lld is not aligned to %zu bytes", bytes, offset, align);
}

// ---- the scheduler -------------------------------------------------------------------------------------------------

static bool runnable(const Machine *m, int i) {
    const Fiber &f = m->fibers[i];
    switch (f.state) {
    case READY: return true;
    case WAIT_WARP: return int(m->warps[i / 32].completed - f.warp_phase) >= 0;
    case WAIT_BLOCK: return int(m->barrier_completed - f.block_phase) >= 0;
    default: return false;
    }
}

// Says which threads wait where when none can go on.
static void report_deadlock() {
    Machine *m = machine;
    int done = 0, warp = 0, block = 0, first_block = -1, first_warp = -1, first_done = -1;
    for (int i = 0; i < m->threads; i++) {
        State s = m->fibers[i].state;
        if (s == DONE) {
            done++;
            if (first_done < 0) first_done = i;
        } else if (s == WAIT_WARP) {
            warp++;
            if (first_warp < 0) first_warp = i;
        } else {
            block++;
            if (first_block < 0) first_block = i;
        }
    }
    if (warp > 0)
        fail("warp collective not reached by all lanes: of %d threads %d wait in a warp collective (first: %d), %d wait "
             "at __syncthreads (first: %d), %d have returned (first: %d)",
             m->threads, warp, first_warp, block, first_block, done, first_done);
    fail("barrier not reached by all threads: of %d threads %d wait at __syncthreads (first: %d), %d have returned "
         "(first: %d)",
         m->threads, block, first_block, done, first_done);
}

// Runs something else until the calling fiber may go on. `self` has set its state.
static void wait_turn() {
    Machine *m = machine;
    int self = m->running, n = m->threads;
    for (int k = 1; k <= n; k++) {
        int i = m->reversed ? (self - k + 2 * n) % n : (self + k) % n;
        if (!runnable(m, i)) continue;
        if (i == self) break;
        m->fibers[i].state = m->fibers[i].state == DONE ? DONE : READY;
        switch_to_fiber(self, i);
        // Whoever switched here found this fiber runnable.
        m->fibers[self].state = READY;
        return;
    }
    if (m->fibers[self].state != DONE && runnable(m, self)) {
        m->fibers[self].state = READY;
        return;
    }
    for (int i = 0; i < n; i++)
        if (m->fibers[i].state != DONE) report_deadlock();
    switch_to_main(self);
}

extern "C" void moe_host_fiber_main() {
    Machine *m = machine;
    m->kernel->run(m->params);
    m->fibers[m->running].state = DONE;
    wait_turn();
    abort(); // not reached: a finished fiber is never runnable
}

void block_barrier(int) {
    Machine *m = machine;
    Fiber &f = m->fibers[m->running];
    f.block_phase++;
    if (++m->barrier_arrived == unsigned(m->threads)) {
        m->barrier_arrived = 0;
        m->barrier_completed++;
        return;
    }
    f.state = WAIT_BLOCK;
    wait_turn();
}

const uint64_t *warp_exchange(unsigned mask, uint64_t value, int operation) {
    Machine *m = machine;
    int self = m->running;
    Fiber &f = m->fibers[self];
    Warp &w = m->warps[self / 32];
    if (mask != 0xffffffffu) fail("warp collective with mask %08x: only full warps are used", mask);
    if (w.arrived == 0) w.operation = operation;
    if (w.operation != operation) fail("lanes of one warp are in different warp collectives");
    // Two sets of slots: a fast lane may enter the next collective while others still read this one's values.
    uint64_t *slots = w.slots[f.warp_phase & 1];
    f.warp_phase++;
    slots[self & 31] = value;
    if (++w.arrived == 32) {
        w.arrived = 0;
        w.completed++;
        return slots;
    }
    f.state = WAIT_WARP;
    wait_turn();
    return slots;
}

void *shared_memory(const void *key, size_t bytes) {
    Machine *m = machine;
    for (int i = 0; i < m->array_count; i++)
        if (m->arrays[i].key == key) {
            if (m->arrays[i].bytes != bytes) fail("a shared array has two sizes in one block");
            return m->shared + m->arrays[i].offset;
        }
    size_t offset = (m->shared_used + 15) & ~size_t(15);
    if (m->array_count == MAX_SHARED_ARRAYS || offset + bytes > m->shared_limit)
        fail("shared memory: %zu bytes in use and %zu more wanted, a block may have %zu", offset, bytes,
             m->shared_limit);
    m->arrays[m->array_count++] = SharedArray{key, offset, bytes};
    m->shared_used = offset + bytes;
    memset(m->shared + offset, POISON, bytes);
    return m->shared + offset;
}

void *dynamic_shared_memory(size_t *bytes) {
    *bytes = machine->dynamic_bytes;
    return machine->shared;
}

static bool ensure_machine() {
    if (machine) return true;
    size_t bytes = sizeof(Machine) + STACK_BYTES * MAX_THREADS;
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    machine = static_cast<Machine *>(p);
    machine->stacks = static_cast<char *>(p) + sizeof(Machine);
    return true;
}

static bool run_block(Dim3 block, Dim3 grid, Dim3 dim) {
    Machine *m = machine;
    memset(m->shared, POISON, m->dynamic_bytes);
    m->array_count = 0;
    m->shared_used = m->dynamic_bytes;
    m->barrier_arrived = m->barrier_completed = 0;
    for (int w = 0; w < m->threads / 32; w++) m->warps[w].arrived = m->warps[w].completed = 0;
    for (int i = 0; i < m->threads; i++) {
        Fiber &f = m->fibers[i];
        unsigned u = unsigned(i);
        f.thread = Thread{{u % dim.x, u / dim.x % dim.y, u / (dim.x * dim.y)}, block, dim, grid};
        f.state = READY;
        f.warp_phase = f.block_phase = 0;
        char *top = m->stacks + STACK_BYTES * size_t(i + 1);
#if defined(__x86_64__) || defined(__aarch64__)
        // Staggered so that the fibers' hot frames do not share cache sets.
        f.stack_pointer = fresh_stack(top - 64 * size_t(i % 64));
#else
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = top - STACK_BYTES;
        f.context.uc_stack.ss_size = STACK_BYTES;
        f.context.uc_link = nullptr;
        makecontext(&f.context, reinterpret_cast<void (*)()>(&moe_host_fiber_main), 0);
#endif
    }
    switch_to_fiber(-1, m->reversed ? m->threads - 1 : 0);
    current = nullptr;
    return !m->failed;
}

// Keeps every kernel unit in the link; generated by the build script.
extern "C" void moe_host_keep_units();

static const Kernel *find(const char *name) {
    moe_host_keep_units();
    for (const Kernel *k = kernels; k; k = k->next)
        if (strcmp(k->name, name) == 0) return k;
    return nullptr;
}

} // namespace moe_host

using namespace moe_host;

// The n-th kernel's name, or null past the last.
extern "C" const char *moe_host_kernel_name(size_t n) {
    moe_host_keep_units();
    for (const Kernel *k = kernels; k; k = k->next)
        if (n-- == 0) return k->name;
    return nullptr;
}

// The kind of a kernel's parameter, or -1 past its last and for a kernel that is not there.
extern "C" int moe_host_kernel_kind(const char *name, size_t parameter) {
    const Kernel *k = find(name);
    return k && parameter < k->count ? int(k->kinds[parameter]) : -1;
}

// Gives back what launches on the calling operating-system thread have allocated.
extern "C" void moe_host_release_thread() {
    if (machine) munmap(machine, sizeof(Machine) + STACK_BYTES * MAX_THREADS);
    machine = nullptr;
}

// Runs one launch to its end. Returns 0, or 1 with `error` (at least 512 bytes) filled.
extern "C" int moe_host_launch(const char *name, const uint32_t grid[3], const uint32_t block[3],
                               size_t dynamic_bytes, size_t shared_limit_bytes, const Param *params, size_t count,
                               int reversed, char *error) {
    const Kernel *k = find(name);
    if (!k) {
        snprintf(error, ERROR_CHARS, "no kernel named %s", name);
        return 1;
    }
    if (k->count != count) {
        snprintf(error, ERROR_CHARS, "kernel %s takes %zu parameters, the launch has %zu", name, k->count, count);
        return 1;
    }
    for (size_t i = 0; i < count; i++)
        if (k->kinds[i] != params[i].kind) {
            static const char *const names[] = {"a pointer", "an i32", "a u32", "an f32", "a u64"};
            snprintf(error, ERROR_CHARS, "kernel %s, parameter %zu: the kernel takes %s, the launch passes %s", name, i,
                     names[k->kinds[i]], names[params[i].kind]);
            return 1;
        }
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (threads == 0 || threads > uint64_t(k->max_threads) || threads % 32 != 0) {
        snprintf(error, ERROR_CHARS, "kernel %s: %llu threads a block; 32 to %d in whole warps are possible", name,
                 (unsigned long long)threads, k->max_threads);
        return 1;
    }
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535) {
        snprintf(error, ERROR_CHARS, "kernel %s: a grid of (%u, %u, %u) blocks is not possible", name, grid[0], grid[1],
                 grid[2]);
        return 1;
    }
    if (dynamic_bytes > shared_limit_bytes || shared_limit_bytes > SHARED_LIMIT_BYTES) {
        snprintf(error, ERROR_CHARS, "kernel %s: %zu bytes of dynamic shared memory, a block may have %zu", name,
                 dynamic_bytes, shared_limit_bytes);
        return 1;
    }
    if (!ensure_machine()) {
        snprintf(error, ERROR_CHARS, "no memory for the fibers' stacks");
        return 1;
    }
    Machine *m = machine;
    m->kernel = k;
    m->params = params;
    m->threads = int(threads);
    m->dynamic_bytes = dynamic_bytes;
    m->shared_limit = shared_limit_bytes;
    m->reversed = reversed;
    m->failed = false;
    m->error = error;
    Dim3 g{grid[0], grid[1], grid[2]}, d{block[0], block[1], block[2]};
    uint64_t blocks = uint64_t(g.x) * g.y * g.z;
    for (uint64_t b = 0; b < blocks; b++) {
        uint64_t i = reversed ? blocks - 1 - b : b;
        Dim3 at{unsigned(i % g.x), unsigned(i / g.x % g.y), unsigned(i / (uint64_t(g.x) * g.y))};
        if (!run_block(at, g, d)) return 1;
    }
    return 0;
}
