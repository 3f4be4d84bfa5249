// Modules, kernels by name, and launches: what a GPU would run, run by the kernels' host harness.
#include "stand_in.h"

#include "host/host.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

extern "C" int moe_host_launch(const char *name, const uint32_t grid[3], const uint32_t block[3], size_t dynamic_bytes,
                               size_t shared_limit_bytes, const moe_host::Param *params, size_t count, int reversed,
                               char *error);
extern "C" void moe_host_release_thread();
extern "C" int moe_host_kernel_kind(const char *name, size_t parameter);

namespace stand_in {

namespace {

constexpr size_t SHARED_BYTES = 48 * 1024;
constexpr size_t ERROR_CHARS = 512;
constexpr int OVERLAP_CAPABILITY = 90;

// The fibers' stacks go when the thread that ran launches ends.
struct ReleaseThread {
    bool used = false;
    ~ReleaseThread() {
        if (used) moe_host_release_thread();
    }
};
thread_local ReleaseThread release_thread;

uint64_t runs = 0, runs_of_failing = 0;

// Whether this run is the one that is to fail.
bool fails(const std::string &kernel) {
    const Settings &s = settings();
    if (s.fail_run == 0 || (s.fail_kernel != "*" && s.fail_kernel != kernel)) return false;
    return ++runs_of_failing == s.fail_run;
}

} // namespace

Result run_launch(const Launch &launch) {
    const Entry &entry = *launch.function->entry;
    runs++;
    count("kernels run");
    if (fails(entry.name)) {
        fprintf(stderr, "stand-in: run %llu, kernel %s: made to fail\n", (unsigned long long)runs, entry.name.c_str());
        return Result(settings().fail_code);
    }
    std::vector<moe_host::Param> params;
    for (size_t i = 0; i < launch.params.size(); i++) {
        moe_host::Param param{uint32_t(moe_host_kernel_kind(entry.name.c_str(), i)), 0, launch.params[i], 0, 0};
        if (param.kind == moe_host::KIND_POINTER && param.bits != 0 &&
            !inside(context.device_memory, param.bits, 0, &param.lo, &param.hi))
            return misuse("a queued launch", ILLEGAL_ADDRESS, entry.name + ": memory of parameter " + std::to_string(i) +
                                                                   " was freed");
        params.push_back(param);
    }
    release_thread.used = true;
    char error[ERROR_CHARS] = {};
    if (moe_host_launch(entry.name.c_str(), launch.grid, launch.block, launch.shared_bytes, SHARED_BYTES, params.data(),
                        params.size(), 0, error)) {
        misuse("a kernel", ILLEGAL_ADDRESS, error);
        return ILLEGAL_ADDRESS;
    }
    return SUCCESS;
}

} // namespace stand_in

using namespace stand_in;
using Guard = std::lock_guard<std::recursive_mutex>;

// ---- modules -----------------------------------------------------------------------------------------------------------------

// Whether anything has been launched in this process.
static bool launched = false;

// The newest PTX that a driver takes: 12.x reads 8.x, 11.x reads 7.x.
static int newest_ptx(int driver) { return (driver / 1000 - 4) * 10 + driver % 1000 / 10; }

// Registers of a kernel by kernels/ptxas-table.txt; 0 where it has none.
static int registers_of(const std::string &kernel) {
    static const std::map<std::string, int> table = [] {
        std::map<std::string, int> found;
        std::ifstream file(STAND_IN_TABLE);
        std::vector<int> chips;
        for (std::string line; std::getline(file, line);) {
            std::istringstream cells(line);
            std::string name, cell;
            cells >> name;
            if (name == "#") continue;
            int registers = 0;
            for (size_t i = 0; cells >> cell; i++)
                if (name == "kernel") chips.push_back(atoi(cell.c_str() + 3));
                else if (i == 0 || (i < chips.size() && chips[i] <= settings().capability)) registers = atoi(cell.c_str());
            if (registers) found[name] = registers;
        }
        return found;
    }();
    auto found = table.find(kernel);
    return found == table.end() ? 0 : found->second;
}

// Writes into the log that the caller gave, if it gave one.
static void tell(unsigned count, const int *options, void **values, const std::string &text) {
    char *log = nullptr;
    size_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == 5) log = static_cast<char *>(values[i]); // CU_JIT_ERROR_LOG_BUFFER
        if (options[i] == 6) bytes = size_t(values[i]);            // …_SIZE_BYTES
    }
    if (log && bytes) snprintf(log, bytes, "%s", text.c_str());
}

STAND_IN_CALL cuModuleLoadDataEx(Module **made, const void *image, unsigned count_options, int *options, void **values) {
    Guard guard(lock);
    if (Result r = check_context("cuModuleLoadData")) return r;
    if (Result r = check_no_recording("cuModuleLoadData")) return r;
    auto refuse = [&](Result code, const std::string &why) {
        tell(count_options, options, values, "ptxas fatal   : " + why);
        return misuse("cuModuleLoadData", code, why);
    };
    auto module = std::make_unique<Module>();
    std::string wrong = parse(static_cast<const char *>(image), module->ptx);
    if (!wrong.empty()) return refuse(INVALID_PTX, wrong);
    const Settings &s = settings();
    if (module->ptx.version > newest_ptx(s.driver))
        return refuse(UNSUPPORTED_PTX_VERSION, "PTX " + std::to_string(module->ptx.version) + " is newer than the driver");
    if (module->ptx.target > s.capability)
        return refuse(NO_BINARY_FOR_GPU, "made for sm_" + std::to_string(module->ptx.target));
    for (const auto &[name, entry] : module->ptx.entries) {
        // The kernel's C++ signature, which the harness was compiled from, and the one that NVRTC wrote.
        size_t n = 0;
        for (int kind; (kind = moe_host_kernel_kind(name.c_str(), n)) >= 0; n++) {
            size_t bytes = kind == moe_host::KIND_POINTER || kind == moe_host::KIND_U64 ? 8 : 4;
            if (n < entry.param_bytes.size() && entry.param_bytes[n] != bytes)
                return refuse(INVALID_PTX, name + ": parameter " + std::to_string(n) + " has another size");
        }
        if (n != entry.param_bytes.size()) return refuse(INVALID_PTX, name + ": another number of parameters");
        count("entries compared");
    }
    *made = module.release();
    context.modules.insert(*made);
    count("modules loaded");
    static std::set<std::string> loaded;
    if (!loaded.insert((*made)->ptx.entries.begin()->first).second) count("modules loaded again");
    if (launched) count("modules loaded behind a launch");
    return SUCCESS;
}

STAND_IN_CALL cuModuleGetFunction(Function **made, Module *module, const char *name) {
    Guard guard(lock);
    if (Result r = check_context("cuModuleGetFunction")) return r;
    if (!context.modules.count(module)) return misuse("cuModuleGetFunction", INVALID_HANDLE, "an unknown module");
    auto found = module->ptx.entries.find(name);
    if (found == module->ptx.entries.end()) return misuse("cuModuleGetFunction", NOT_FOUND, name);
    // The same handle every time.
    for (Function *function : context.functions)
        if (function->entry == &found->second) return *made = function, SUCCESS;
    *made = new Function{module, &found->second};
    context.functions.insert(*made);
    return SUCCESS;
}

// From what ptxas says of the kernel for the newest chip of the table that is not newer, and for a multiprocessor of 65536
// registers, 64 warps and 228 KiB of shared memory.
STAND_IN_CALL cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *function, int threads, size_t shared_bytes) {
    const char *call = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
    Guard guard(lock);
    if (Result r = check_context(call)) return r;
    if (Result r = check_no_recording(call)) return r;
    if (!context.functions.count(function)) return misuse(call, INVALID_HANDLE, "an unknown function");
    const Entry &entry = *function->entry;
    if (threads <= 0 || unsigned(threads) > entry.max_threads) return misuse(call, INVALID_VALUE, entry.name + ": threads");
    int registers = registers_of(entry.name);
    if (registers == 0) return misuse(call, INVALID_VALUE, entry.name + " is not in the table of registers");
    int warps = (threads + 31) / 32, of_warp = (registers * 32 + 255) / 256 * 256;
    int by_registers = 4 * (65536 / 4 / of_warp) / warps;
    int by_shared = int((228 << 10) / (entry.static_shared_bytes + shared_bytes + 1024));
    *blocks = std::min({by_registers, 64 / warps, 32, by_shared});
    count("occupancies asked for");
    return SUCCESS;
}

STAND_IN_CALL cuModuleUnload(Module *module) {
    Guard guard(lock);
    Result state = check_context("cuModuleUnload");
    if (state && state != context.sticky) return state;
    if (Result r = check_no_recording("cuModuleUnload")) return r;
    if (!context.modules.count(module)) return misuse("cuModuleUnload", INVALID_HANDLE, "an unknown module");
    if (Result r = run_everything()) return r;
    for (auto f = context.functions.begin(); f != context.functions.end();) {
        Function *function = *f;
        bool gone = function->module == module;
        f = gone ? context.functions.erase(f) : std::next(f);
        if (gone) delete function;
    }
    context.modules.erase(module);
    delete module;
    return SUCCESS;
}

// ---- launches ------------------------------------------------------------------------------------------------------------------

struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        int number;
        char bytes[64];
    } value;
};

struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    Stream *stream;
    LaunchAttribute *attributes;
    unsigned attribute_count;
};

STAND_IN_CALL cuLaunchKernelEx(const LaunchConfig *config, Function *function, void **params, void **extra) {
    Guard guard(lock);
    if (Result r = check_context("cuLaunchKernelEx")) return r;
    if (!context.functions.count(function)) return misuse("cuLaunchKernelEx", INVALID_HANDLE, "an unknown function");
    const Entry &entry = *function->entry;
    auto refuse = [&](Result code, const std::string &why) {
        return misuse("cuLaunchKernelEx", code, entry.name + ": " + why);
    };
    if (extra) return refuse(NOT_SUPPORTED, "parameters in `extra`");
    uint64_t threads = uint64_t(config->block[0]) * config->block[1] * config->block[2];
    if (threads == 0 || threads > entry.max_threads)
        return refuse(INVALID_VALUE, std::to_string(threads) + " threads, at most " + std::to_string(entry.max_threads));
    const unsigned *grid = config->grid;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
        return refuse(INVALID_VALUE, "a grid that is not possible");
    if (entry.static_shared_bytes + config->shared_bytes > SHARED_BYTES)
        return refuse(INVALID_VALUE, std::to_string(entry.static_shared_bytes) + " + " +
                                         std::to_string(config->shared_bytes) + " bytes of shared memory");
    if (!function->loaded)
        if (Result r = check_no_recording("cuLaunchKernelEx, loading the kernel")) return r;
    function->loaded = true;
    Work work{};
    work.kind = Work::LAUNCH;
    Launch &launch = work.launch;
    launch.function = function;
    for (int i = 0; i < 3; i++) {
        launch.grid[i] = grid[i];
        launch.block[i] = config->block[i];
    }
    launch.shared_bytes = config->shared_bytes;
    for (unsigned i = 0; i < config->attribute_count; i++) {
        if (config->attributes[i].id != 6) return refuse(NOT_SUPPORTED, "an attribute other than overlapping launches");
        launch.overlaps = config->attributes[i].value.number != 0;
    }
    if (launch.overlaps && settings().capability < OVERLAP_CAPABILITY)
        return refuse(NOT_SUPPORTED, "this chip's launches do not overlap");
    if (launch.overlaps && !entry.waits) return refuse(INVALID_VALUE, "overlaps, but does not wait for the launch in front");
    for (size_t i = 0; i < entry.param_bytes.size(); i++) {
        uint64_t bits = 0;
        memcpy(&bits, params[i], entry.param_bytes[i]);
        bool pointer = moe_host_kernel_kind(entry.name.c_str(), i) == moe_host::KIND_POINTER;
        if (pointer && bits != 0 && !inside(context.device_memory, bits, 0, nullptr, nullptr))
            return refuse(INVALID_VALUE, "parameter " + std::to_string(i) + " points into no live memory");
        launch.params.push_back(bits);
    }
    launched = true;
    count(launch.overlaps ? "overlapping launches" : "plain launches");
    return enqueue("cuLaunchKernelEx", config->stream, std::move(work));
}
