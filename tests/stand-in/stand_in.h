// A stand-in for NVIDIA's driver library, for tests: libcuda.so.1 with the entry points that the CUDA backend calls, on a
// GPU that is the kernels' host harness (kernels/host). What runs is the backend's real path: finding and loading the
// library, contexts, modules of PTX, launches through parameter arrays, streams, recorded graphs, page-locked memory.
//
// It is as strict as the driver is, or stricter where the driver would leave something undefined:
//   - a call on a thread without a current context, after the context was released, or with an unknown handle, fails;
//   - work is queued and runs only when something waits for it (unless STAND_IN_ORDER=eager): page-locked memory is read
//     and written then, so a host that is too early sees or sends wrong bytes. Memory that a copy will write is filled
//     with other bytes until then, and fresh device memory with ones;
//   - a module is PTX text that this driver version and this chip take; a kernel is an `.entry` of it, whose parameters
//     agree in number and size with the kernel's C++ signature; a launch passes each by its declared size, every pointer
//     null or inside live memory, no more threads and shared memory than the entry and the chip allow;
//   - a launch that may overlap the one in front must be of an entry that waits for it before it touches global memory;
//   - while a stream is recorded, calls that wait or allocate fail and spoil the recording; so does a kernel's first launch,
//     for which the driver may have to load it;
//   - a kernel that fails makes every later call of the context fail.
// A mistake of the caller is also written to standard error, as a line "stand-in: misuse: …"; so is what is left when the
// context is released. Deliberately absent: the null stream, several devices and streams that wait for each other.
//
// Environment:
//   STAND_IN_DRIVER=12040        cuDriverGetVersion's answer
//   STAND_IN_CAPABILITY=9.0      compute capability
//   STAND_IN_DEVICES=1           0: no GPU, which cuInit reports
//   STAND_IN_MEMORY_BYTES=N      the device's memory (default 4 GiB)
//   STAND_IN_HELD_BYTES=N        of which another process holds this much
//   STAND_IN_HELD_FROM=N         …only from the N-th allocation on, as a process that came in between
//   STAND_IN_RETAIN=CODE         the context cannot be had: 2 (no memory), 46 (another process holds the device alone)
//   STAND_IN_FAIL=NAME:N:CODE    the N-th run (from 1) of kernel NAME, or of any for `*`, ends with error CODE (e.g. 700)
//   STAND_IN_ORDER=eager         queued work runs at once
//   STAND_IN_REPORT=PATH         counts of what was called, written there when the process ends, one `name number` a line
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace stand_in {

// CUresult, as far as used.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

// ---- ptx.cpp: what a module's text says ----------------------------------------------------------------------------------

struct Entry {
    std::string name;
    std::vector<size_t> param_bytes;
    unsigned max_threads = 1024;
    size_t static_shared_bytes = 0;
    bool waits = false; // `griddepcontrol.wait` stands in front of all that needs what the launch in front wrote
};

struct Ptx {
    int version = 0; // 8.2 is 82
    int target = 0;  // sm_90 is 90
    std::map<std::string, Entry> entries;
};

// Reads a module; an empty text, or what is wrong with it.
std::string parse(const std::string &text, Ptx &ptx);

// ---- objects -------------------------------------------------------------------------------------------------------------

struct Module {
    Ptx ptx;
};

struct Function {
    Module *module;
    const Entry *entry;
    bool loaded = false; // by its first launch
};

struct Event {
    bool recorded = false, captured = false;
    bool timed = true;
    uint64_t ticket = 0; // the queue's place behind which it lies
    double milliseconds = 0;
};

struct Launch {
    Function *function;
    uint32_t grid[3], block[3];
    uint32_t shared_bytes;
    bool overlaps;
    std::vector<uint64_t> params; // each as its declared bytes, zero-extended
};

struct Graph;

// One thing in a stream.
struct Work {
    enum Kind { COPY_TO_DEVICE, COPY_TO_HOST, COPY_ON_DEVICE, FILL, LAUNCH, GRAPH, RECORD } kind;
    uint64_t target = 0, source = 0;
    size_t bytes = 0;
    unsigned char value = 0;
    std::vector<unsigned char> staged; // a copy from pageable memory has been read when it is queued
    bool from_pageable = false;
    Launch launch{};
    std::shared_ptr<Graph> graph;
    Event *event = nullptr;
};

struct Graph {
    std::vector<Work> nodes;
};

// A handle of its own, so that one graph and its executable form may be destroyed in any order.
struct GraphHandle {
    std::shared_ptr<Graph> graph;
};

struct Stream {
    std::deque<Work> queue;
    uint64_t queued = 0, done = 0; // tickets
    bool recording = false, spoiled = false;
    int mode = 0;
    uint64_t thread = 0; // that began the recording
    std::shared_ptr<Graph> recorded;
};

struct Context {
    int users = 0;
    Result sticky = SUCCESS;
    std::set<Stream *> streams;
    std::set<Event *> events;
    std::set<Module *> modules;
    std::set<Function *> functions;
    std::set<GraphHandle *> graphs, executables;
    std::map<uint64_t, size_t> device_memory, host_memory; // start, bytes
};

struct Settings {
    int driver, capability, devices;
    uint64_t memory_bytes, held_bytes, held_from;
    int retain_code;
    std::string fail_kernel;
    uint64_t fail_run;
    int fail_code;
    bool eager;
};

// ---- device.cpp: state, settings, checks ----------------------------------------------------------------------------------

extern std::recursive_mutex lock;
extern Context context;
const Settings &settings();

// The line on standard error; gives `code` back.
Result misuse(const char *call, Result code, const std::string &what);
// Counts for the report.
void count(const char *what, uint64_t more = 1);

// What every call that needs a context asks first.
Result check_context(const char *call);
// What a call asks that waits for other work, or may: it spoils a recording.
Result check_no_recording(const char *call);
uint64_t this_thread();

// The live allocation that holds [address, address + bytes).
bool inside(const std::map<uint64_t, size_t> &memory, uint64_t address, size_t bytes, uint64_t *lo, uint64_t *hi);

// ---- stream.cpp ------------------------------------------------------------------------------------------------------------

// Puts work into a stream, or into what is being recorded of it.
Result enqueue(const char *call, Stream *stream, Work &&work);
// Runs a stream up to a ticket.
Result run_until(Stream *stream, uint64_t ticket);
Result run_everything();

// ---- launch.cpp ------------------------------------------------------------------------------------------------------------

// Runs a launch on the host harness.
Result run_launch(const Launch &launch);

} // namespace stand_in

#define STAND_IN_CALL extern "C" __attribute__((visibility("default"))) stand_in::Result
