// The driver, its one device, the primary context and memory.
#include "stand_in.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

namespace stand_in {

std::recursive_mutex lock;
Context context;

namespace {

constexpr size_t ALIGN_BYTES = 256;
// Two allocations never touch, so that an address past one's end is in none.
constexpr size_t GAP_BYTES = 4096;
constexpr unsigned char FRESH = 0xff;

bool initialised = false;
uint64_t allocations = 0;
thread_local bool has_context = false;

std::map<std::string, uint64_t> counts;

uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

struct AtExit {
    ~AtExit() {
        if (const char *path = getenv("STAND_IN_REPORT"))
            if (FILE *file = counts.empty() ? nullptr : fopen(path, "w")) {
                for (const auto &[name, n] : counts) fprintf(file, "%s %llu\n", name.c_str(), (unsigned long long)n);
                fclose(file);
            }
    }
} at_exit;

uint64_t used_bytes() {
    uint64_t used = 0;
    for (const auto &[start, bytes] : context.device_memory) used += bytes;
    return used;
}

uint64_t free_bytes() {
    const Settings &s = settings();
    uint64_t taken = used_bytes() + (allocations >= s.held_from ? s.held_bytes : 0);
    return taken < s.memory_bytes ? s.memory_bytes - taken : 0;
}

size_t mapped_bytes(size_t bytes) { return (bytes + GAP_BYTES - 1) / GAP_BYTES * GAP_BYTES + GAP_BYTES; }

void *map(size_t bytes, unsigned char fill) {
    void *p = mmap(nullptr, mapped_bytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    memset(p, fill, bytes);
    return p;
}

// What is alive when the context ends was forgotten, and ends with it.
void end_context() {
    struct {
        const char *what;
        size_t number;
    } left[] = {{"device allocations", context.device_memory.size()},
                {"page-locked allocations", context.host_memory.size()},
                {"streams", context.streams.size()},
                {"events", context.events.size()},
                {"modules", context.modules.size()},
                {"recorded graphs", context.graphs.size() + context.executables.size()}};
    for (auto &l : left)
        // What a failed context still holds could not be given back: that is no mistake.
        if (l.number && !context.sticky)
            misuse("cuDevicePrimaryCtxRelease", INVALID_VALUE, std::to_string(l.number) + " " + l.what + " left");
    Result sticky = context.sticky;
    context = Context();
    context.sticky = sticky;
}

} // namespace

const Settings &settings() {
    static const Settings read = [] {
        Settings s{};
        s.driver = int(number("STAND_IN_DRIVER", 12040));
        const char *capability = getenv("STAND_IN_CAPABILITY");
        int major = 9, minor = 0;
        if (capability) sscanf(capability, "%d.%d", &major, &minor);
        s.capability = 10 * major + minor;
        s.devices = int(number("STAND_IN_DEVICES", 1));
        s.memory_bytes = number("STAND_IN_MEMORY_BYTES", uint64_t(4) << 30);
        s.held_bytes = number("STAND_IN_HELD_BYTES", 0);
        s.held_from = number("STAND_IN_HELD_FROM", 0);
        s.retain_code = int(number("STAND_IN_RETAIN", 0));
        if (const char *fail = getenv("STAND_IN_FAIL")) {
            std::string text = fail;
            size_t first = text.find(':'), second = text.find(':', first + 1);
            if (first == std::string::npos || second == std::string::npos) {
                fprintf(stderr, "stand-in: STAND_IN_FAIL=%s, wanted NAME:N:CODE\n", fail);
                abort();
            }
            s.fail_kernel = text.substr(0, first);
            s.fail_run = strtoull(text.c_str() + first + 1, nullptr, 10);
            s.fail_code = atoi(text.c_str() + second + 1);
        }
        const char *order = getenv("STAND_IN_ORDER");
        s.eager = order && strcmp(order, "eager") == 0;
        return s;
    }();
    return read;
}

Result misuse(const char *call, Result code, const std::string &what) {
    count("misuses");
    fprintf(stderr, "stand-in: misuse: %s: %s (error %d)\n", call, what.c_str(), code);
    return code;
}

void count(const char *what, uint64_t more) { counts[what] += more; }

uint64_t this_thread() {
    static thread_local char mark;
    return uint64_t(&mark);
}

Result check_context(const char *call) {
    if (!initialised) return misuse(call, NOT_INITIALIZED, "before cuInit");
    if (!has_context) return misuse(call, INVALID_CONTEXT, "no context is current on this thread");
    if (context.users == 0) return misuse(call, CONTEXT_IS_DESTROYED, "the context was released");
    return context.sticky;
}

Result check_no_recording(const char *call) {
    for (Stream *stream : context.streams) {
        // Global recordings forbid unsafe calls to every thread, thread-local ones to the thread that began them.
        bool forbids = stream->mode == 0 || (stream->mode == 1 && stream->thread == this_thread());
        if (stream->recording && forbids) {
            stream->spoiled = true;
            return misuse(call, CAPTURE_UNSUPPORTED, "not while a stream is recorded");
        }
    }
    return SUCCESS;
}

bool inside(const std::map<uint64_t, size_t> &memory, uint64_t address, size_t bytes, uint64_t *lo, uint64_t *hi) {
    auto next = memory.upper_bound(address);
    if (next == memory.begin()) return false;
    --next;
    if (address + bytes < address || address + bytes > next->first + next->second) return false;
    if (lo) *lo = next->first;
    if (hi) *hi = next->first + next->second;
    return true;
}

} // namespace stand_in

using namespace stand_in;
using Guard = std::lock_guard<std::recursive_mutex>;

// ---- the driver ------------------------------------------------------------------------------------------------------------

STAND_IN_CALL cuInit(unsigned flags) {
    Guard guard(lock);
    if (flags != 0) return misuse("cuInit", INVALID_VALUE, "flags");
    if (settings().devices == 0) return NO_DEVICE;
    initialised = true;
    return SUCCESS;
}

STAND_IN_CALL cuDriverGetVersion(int *version) {
    *version = settings().driver;
    return SUCCESS;
}

STAND_IN_CALL cuGetErrorString(Result code, const char **text) {
    switch (int(code)) {
    case SUCCESS: *text = "no error"; break;
    case INVALID_VALUE: *text = "invalid argument"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case INVALID_CONTEXT: *text = "invalid device context"; break;
    case UNSUPPORTED_PTX_VERSION: *text = "the provided PTX was compiled with an unsupported toolchain."; break;
    case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
    case 719: *text = "unspecified launch failure"; break;
    case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
    case CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; break;
    default: *text = "another error"; break;
    }
    return SUCCESS;
}

// ---- the device ------------------------------------------------------------------------------------------------------------

static Result check_device(const char *call, int device) {
    if (!initialised) return misuse(call, NOT_INITIALIZED, "before cuInit");
    return device >= 0 && device < settings().devices ? SUCCESS : misuse(call, INVALID_DEVICE, "no such device");
}

STAND_IN_CALL cuDeviceGetCount(int *devices) {
    if (!initialised) return misuse("cuDeviceGetCount", NOT_INITIALIZED, "before cuInit");
    *devices = settings().devices;
    return SUCCESS;
}

STAND_IN_CALL cuDeviceGet(int *device, int ordinal) {
    if (Result r = check_device("cuDeviceGet", ordinal)) return r;
    *device = ordinal;
    return SUCCESS;
}

STAND_IN_CALL cuDeviceGetName(char *name, int bytes, int device) {
    if (Result r = check_device("cuDeviceGetName", device)) return r;
    snprintf(name, size_t(bytes), "Stand-in GPU");
    return SUCCESS;
}

STAND_IN_CALL cuDeviceTotalMem_v2(size_t *bytes, int device) {
    if (Result r = check_device("cuDeviceTotalMem", device)) return r;
    *bytes = settings().memory_bytes;
    return SUCCESS;
}

STAND_IN_CALL cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (Result r = check_device("cuDeviceGetAttribute", device)) return r;
    switch (attribute) {
    case 8: *value = 48 * 1024; break;               // shared memory of a block without opting in
    case 16: *value = 4; break;                      // multiprocessors, as the harness has
    case 75: *value = settings().capability / 10; break;
    case 76: *value = settings().capability % 10; break;
    default: return misuse("cuDeviceGetAttribute", INVALID_VALUE, "attribute " + std::to_string(attribute));
    }
    return SUCCESS;
}

// ---- the primary context -----------------------------------------------------------------------------------------------------

STAND_IN_CALL cuDevicePrimaryCtxRetain(Context **made, int device) {
    Guard guard(lock);
    if (Result r = check_device("cuDevicePrimaryCtxRetain", device)) return r;
    if (settings().retain_code) return Result(settings().retain_code);
    context.users++;
    count("contexts retained");
    *made = &context;
    return SUCCESS;
}

STAND_IN_CALL cuDevicePrimaryCtxRelease_v2(int device) {
    Guard guard(lock);
    if (Result r = check_device("cuDevicePrimaryCtxRelease", device)) return r;
    if (context.users == 0) return misuse("cuDevicePrimaryCtxRelease", INVALID_CONTEXT, "released more often than retained");
    count("contexts released");
    if (--context.users == 0) end_context();
    return SUCCESS;
}

STAND_IN_CALL cuCtxSetCurrent(Context *wanted) {
    Guard guard(lock);
    if (wanted == nullptr) {
        has_context = false;
        return SUCCESS;
    }
    if (wanted != &context) return misuse("cuCtxSetCurrent", INVALID_CONTEXT, "an unknown context");
    if (context.users == 0) return misuse("cuCtxSetCurrent", CONTEXT_IS_DESTROYED, "the context was released");
    has_context = true;
    return SUCCESS;
}

// ---- memory ------------------------------------------------------------------------------------------------------------------

STAND_IN_CALL cuMemGetInfo_v2(size_t *free, size_t *total) {
    Guard guard(lock);
    if (Result r = check_context("cuMemGetInfo")) return r;
    *free = free_bytes();
    *total = settings().memory_bytes;
    return SUCCESS;
}

STAND_IN_CALL cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    Guard guard(lock);
    if (Result r = check_context("cuMemAlloc")) return r;
    if (Result r = check_no_recording("cuMemAlloc")) return r;
    if (bytes == 0) return misuse("cuMemAlloc", INVALID_VALUE, "no bytes");
    allocations++;
    if (bytes > free_bytes()) return OUT_OF_MEMORY;
    void *p = map(bytes, FRESH);
    if (!p) return OUT_OF_MEMORY;
    static_assert(GAP_BYTES % ALIGN_BYTES == 0, "pages are aligned as allocations are");
    context.device_memory[uint64_t(p)] = bytes;
    count("allocations");
    *address = uint64_t(p);
    return SUCCESS;
}

STAND_IN_CALL cuMemFree_v2(uint64_t address) {
    Guard guard(lock);
    if (Result r = check_context("cuMemFree")) return r;
    if (Result r = check_no_recording("cuMemFree")) return r;
    auto found = context.device_memory.find(address);
    if (found == context.device_memory.end()) return misuse("cuMemFree", INVALID_VALUE, "not the start of an allocation");
    // Freeing waits for the work that may use the memory.
    if (Result r = run_everything()) return r;
    munmap(reinterpret_cast<void *>(address), mapped_bytes(found->second));
    context.device_memory.erase(found);
    return SUCCESS;
}

STAND_IN_CALL cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    Guard guard(lock);
    if (Result r = check_context("cuMemHostAlloc")) return r;
    if (Result r = check_no_recording("cuMemHostAlloc")) return r;
    if (bytes == 0) return misuse("cuMemHostAlloc", INVALID_VALUE, "no bytes");
    void *p = map(bytes, FRESH);
    if (!p) return OUT_OF_MEMORY;
    context.host_memory[uint64_t(p)] = bytes;
    count("page-locked allocations");
    *memory = p;
    return SUCCESS;
}

STAND_IN_CALL cuMemFreeHost(void *memory) {
    Guard guard(lock);
    if (Result r = check_context("cuMemFreeHost")) return r;
    if (Result r = check_no_recording("cuMemFreeHost")) return r;
    auto found = context.host_memory.find(uint64_t(memory));
    if (found == context.host_memory.end()) return misuse("cuMemFreeHost", INVALID_VALUE, "not page-locked memory's start");
    for (Stream *stream : context.streams)
        for (const Work &work : stream->queue) {
            bool reads = work.kind == Work::COPY_TO_DEVICE && !work.from_pageable;
            uint64_t used = reads ? work.source : work.kind == Work::COPY_TO_HOST ? work.target : 0;
            if (used >= found->first && used < found->first + found->second)
                return misuse("cuMemFreeHost", INVALID_VALUE, "a queued copy uses the memory");
        }
    munmap(memory, mapped_bytes(found->second));
    context.host_memory.erase(found);
    return SUCCESS;
}
