// Streams, events, copies, recorded graphs; and the queue that runs when somebody waits for it.
#include "stand_in.h"

#include <chrono>
#include <cstring>

namespace stand_in {

namespace {

// What lies in the target of a copy to page-locked memory until the copy has run.
constexpr unsigned char PENDING = 0xa5;

Result copy(const Work &work) {
    bool to_device = work.kind != Work::COPY_TO_HOST, from_device = work.kind != Work::COPY_TO_DEVICE;
    // The host's side may have been given back since: that was refused. The device's side cannot.
    if (to_device && !inside(context.device_memory, work.target, work.bytes, nullptr, nullptr))
        return misuse("a queued copy", ILLEGAL_ADDRESS, "its target was freed");
    if (from_device && !inside(context.device_memory, work.source, work.bytes, nullptr, nullptr))
        return misuse("a queued copy", ILLEGAL_ADDRESS, "its source was freed");
    const void *source = work.from_pageable ? work.staged.data() : reinterpret_cast<const void *>(work.source);
    memmove(reinterpret_cast<void *>(work.target), source, work.bytes);
    return SUCCESS;
}

double now() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

Result run(const Work &work) {
    switch (work.kind) {
    case Work::COPY_TO_DEVICE:
    case Work::COPY_TO_HOST:
    case Work::COPY_ON_DEVICE: return work.bytes ? copy(work) : SUCCESS;
    case Work::FILL:
        if (!inside(context.device_memory, work.target, work.bytes, nullptr, nullptr))
            return misuse("a queued fill", ILLEGAL_ADDRESS, "its target was freed");
        memset(reinterpret_cast<void *>(work.target), work.value, work.bytes);
        return SUCCESS;
    case Work::LAUNCH: return run_launch(work.launch);
    case Work::GRAPH:
        for (const Work &node : work.graph->nodes)
            if (Result r = run(node)) return r;
        return SUCCESS;
    case Work::RECORD:
        if (context.events.count(work.event)) work.event->milliseconds = now();
        return SUCCESS;
    }
    return SUCCESS;
}

bool known(Stream *stream) { return context.streams.count(stream) != 0; }

} // namespace

Result run_until(Stream *stream, uint64_t ticket) {
    while (!context.sticky && stream->done < ticket) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        context.sticky = run(work);
    }
    return context.sticky;
}

Result run_everything() {
    for (Stream *stream : context.streams)
        if (Result r = run_until(stream, stream->queued)) return r;
    return SUCCESS;
}

Result enqueue(const char *call, Stream *stream, Work &&work) {
    if (!known(stream)) return misuse(call, INVALID_HANDLE, "an unknown stream, or the null stream");
    if (stream->recording) {
        if (stream->spoiled) return CAPTURE_INVALIDATED;
        if (work.kind == Work::RECORD) {
            work.event->captured = true;
            return SUCCESS;
        }
        stream->recorded->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    if (work.kind == Work::RECORD) work.event->captured = false;
    stream->queue.push_back(std::move(work));
    stream->queued++;
    if (settings().eager) return run_until(stream, stream->queued), SUCCESS; // an error shows when somebody waits
    return SUCCESS;
}

} // namespace stand_in

using namespace stand_in;
using Guard = std::lock_guard<std::recursive_mutex>;

// ---- streams -----------------------------------------------------------------------------------------------------------------

STAND_IN_CALL cuStreamCreate(Stream **made, unsigned flags) {
    Guard guard(lock);
    if (Result r = check_context("cuStreamCreate")) return r;
    if (flags > 1) return misuse("cuStreamCreate", INVALID_VALUE, "flags");
    *made = new Stream();
    context.streams.insert(*made);
    return SUCCESS;
}

// A call that waits for a stream, or looks at it.
static Result check_waiting(const char *call, Stream *stream) {
    if (Result r = check_context(call)) return r;
    if (!known(stream)) return misuse(call, INVALID_HANDLE, "an unknown stream, or the null stream");
    if (stream->recording) {
        stream->spoiled = true;
        return misuse(call, CAPTURE_UNSUPPORTED, "the stream is being recorded");
    }
    return SUCCESS;
}

STAND_IN_CALL cuStreamSynchronize(Stream *stream) {
    Guard guard(lock);
    if (Result r = check_waiting("cuStreamSynchronize", stream)) return r;
    count("stream synchronizations");
    return run_until(stream, stream->queued);
}

STAND_IN_CALL cuStreamDestroy_v2(Stream *stream) {
    Guard guard(lock);
    // A failed context gives its streams back all the same.
    Result state = check_context("cuStreamDestroy");
    if (state && state != context.sticky) return state;
    if (!known(stream)) return misuse("cuStreamDestroy", INVALID_HANDLE, "an unknown stream");
    Result r = run_until(stream, stream->queued);
    context.streams.erase(stream);
    delete stream;
    return r;
}

// ---- events ------------------------------------------------------------------------------------------------------------------

static Result check_event(const char *call, Event *event) {
    if (Result r = check_context(call)) return r;
    if (!context.events.count(event)) return misuse(call, INVALID_HANDLE, "an unknown event");
    return SUCCESS;
}

// The stream that an event was last recorded in.
static std::map<Event *, Stream *> event_streams;

STAND_IN_CALL cuEventCreate(Event **made, unsigned flags) {
    Guard guard(lock);
    if (Result r = check_context("cuEventCreate")) return r;
    if (flags > 7) return misuse("cuEventCreate", INVALID_VALUE, "flags");
    *made = new Event();
    (*made)->timed = !(flags & 2);
    context.events.insert(*made);
    return SUCCESS;
}

STAND_IN_CALL cuEventRecord(Event *event, Stream *stream) {
    Guard guard(lock);
    if (Result r = check_event("cuEventRecord", event)) return r;
    Work work{};
    work.kind = Work::RECORD;
    work.event = event;
    if (Result r = enqueue("cuEventRecord", stream, std::move(work))) return r;
    event->recorded = true;
    event->ticket = stream->queued;
    event_streams[event] = stream;
    return SUCCESS;
}

STAND_IN_CALL cuEventSynchronize(Event *event) {
    Guard guard(lock);
    if (Result r = check_event("cuEventSynchronize", event)) return r;
    if (event->captured) return misuse("cuEventSynchronize", CAPTURED_EVENT, "the event was recorded into a graph");
    count("event synchronizations");
    // Waiting for an event that was never recorded returns at once.
    if (!event->recorded || !known(event_streams[event])) return SUCCESS;
    return run_until(event_streams[event], event->ticket);
}

STAND_IN_CALL cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
    Guard guard(lock);
    if (Result r = check_event("cuEventElapsedTime", start)) return r;
    if (Result r = check_event("cuEventElapsedTime", end)) return r;
    for (Event *event : {start, end}) {
        if (!event->recorded) return misuse("cuEventElapsedTime", INVALID_HANDLE, "an event that was not recorded");
        if (!event->timed) return misuse("cuEventElapsedTime", INVALID_HANDLE, "an event without a time");
        Stream *stream = event_streams[event];
        if (known(stream) && stream->done < event->ticket) return NOT_READY;
    }
    *milliseconds = float(end->milliseconds - start->milliseconds);
    return SUCCESS;
}

STAND_IN_CALL cuEventDestroy_v2(Event *event) {
    Guard guard(lock);
    Result state = check_context("cuEventDestroy");
    if (state && state != context.sticky) return state;
    if (!context.events.count(event)) return misuse("cuEventDestroy", INVALID_HANDLE, "an unknown event");
    // Queued work keeps the address: it is looked up among the living when its turn comes.
    context.events.erase(event);
    event_streams.erase(event);
    delete event;
    return SUCCESS;
}

// ---- copies ------------------------------------------------------------------------------------------------------------------

static Result check_device_range(const char *call, uint64_t address, size_t bytes) {
    if (bytes == 0 || inside(context.device_memory, address, bytes, nullptr, nullptr)) return SUCCESS;
    return misuse(call, INVALID_VALUE, std::to_string(bytes) + " bytes that are not inside one live allocation");
}

STAND_IN_CALL cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t bytes, Stream *stream) {
    Guard guard(lock);
    if (Result r = check_context("cuMemcpyHtoDAsync")) return r;
    if (Result r = check_device_range("cuMemcpyHtoDAsync", target, bytes)) return r;
    Work work{};
    work.kind = Work::COPY_TO_DEVICE;
    work.target = target;
    work.source = uint64_t(source);
    work.bytes = bytes;
    work.from_pageable = !inside(context.host_memory, uint64_t(source), bytes, nullptr, nullptr);
    if (work.from_pageable) {
        if (known(stream) && stream->recording) {
            stream->spoiled = true;
            return misuse("cuMemcpyHtoDAsync", CAPTURE_UNSUPPORTED, "pageable memory is not recorded");
        }
        const unsigned char *from = static_cast<const unsigned char *>(source);
        work.staged.assign(from, from + bytes);
    }
    count(work.from_pageable ? "copies from pageable memory" : "copies from page-locked memory");
    return enqueue("cuMemcpyHtoDAsync", stream, std::move(work));
}

STAND_IN_CALL cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t bytes, Stream *stream) {
    Guard guard(lock);
    if (Result r = check_context("cuMemcpyDtoHAsync")) return r;
    if (Result r = check_device_range("cuMemcpyDtoHAsync", source, bytes)) return r;
    bool pageable = !inside(context.host_memory, uint64_t(target), bytes, nullptr, nullptr);
    if (pageable)
        if (Result r = check_waiting("cuMemcpyDtoHAsync", stream)) return r;
    if (!pageable) memset(target, PENDING, bytes);
    Work work{};
    work.kind = Work::COPY_TO_HOST;
    work.target = uint64_t(target);
    work.source = source;
    work.bytes = bytes;
    count(pageable ? "copies to pageable memory" : "copies to page-locked memory");
    if (Result r = enqueue("cuMemcpyDtoHAsync", stream, std::move(work))) return r;
    // A copy to pageable memory returns when it is done.
    return pageable ? run_until(stream, stream->queued) : SUCCESS;
}

STAND_IN_CALL cuMemcpyDtoDAsync_v2(uint64_t target, uint64_t source, size_t bytes, Stream *stream) {
    Guard guard(lock);
    if (Result r = check_context("cuMemcpyDtoDAsync")) return r;
    if (Result r = check_device_range("cuMemcpyDtoDAsync", target, bytes)) return r;
    if (Result r = check_device_range("cuMemcpyDtoDAsync", source, bytes)) return r;
    Work work{};
    work.kind = Work::COPY_ON_DEVICE;
    work.target = target;
    work.source = source;
    work.bytes = bytes;
    return enqueue("cuMemcpyDtoDAsync", stream, std::move(work));
}

STAND_IN_CALL cuMemsetD8Async(uint64_t target, unsigned char value, size_t bytes, Stream *stream) {
    Guard guard(lock);
    if (Result r = check_context("cuMemsetD8Async")) return r;
    if (Result r = check_device_range("cuMemsetD8Async", target, bytes)) return r;
    Work work{};
    work.kind = Work::FILL;
    work.target = target;
    work.value = value;
    work.bytes = bytes;
    return enqueue("cuMemsetD8Async", stream, std::move(work));
}

// ---- recorded graphs -----------------------------------------------------------------------------------------------------------

STAND_IN_CALL cuStreamBeginCapture_v2(Stream *stream, int mode) {
    Guard guard(lock);
    if (Result r = check_context("cuStreamBeginCapture")) return r;
    if (!known(stream)) return misuse("cuStreamBeginCapture", INVALID_HANDLE, "an unknown stream, or the null stream");
    if (stream->recording) return misuse("cuStreamBeginCapture", INVALID_VALUE, "the stream is being recorded");
    if (mode < 0 || mode > 2) return misuse("cuStreamBeginCapture", INVALID_VALUE, "mode");
    stream->recording = true;
    stream->spoiled = false;
    stream->mode = mode;
    stream->thread = this_thread();
    stream->recorded = std::make_shared<Graph>();
    return SUCCESS;
}

STAND_IN_CALL cuStreamEndCapture(Stream *stream, GraphHandle **made) {
    Guard guard(lock);
    *made = nullptr;
    if (Result r = check_context("cuStreamEndCapture")) return r;
    if (!known(stream)) return misuse("cuStreamEndCapture", INVALID_HANDLE, "an unknown stream, or the null stream");
    if (!stream->recording) return misuse("cuStreamEndCapture", CAPTURE_UNMATCHED, "nothing is recorded");
    if (stream->mode != 2 && stream->thread != this_thread())
        return misuse("cuStreamEndCapture", CAPTURE_WRONG_THREAD, "another thread began");
    stream->recording = false;
    if (stream->spoiled) return CAPTURE_INVALIDATED;
    *made = new GraphHandle{std::move(stream->recorded)};
    context.graphs.insert(*made);
    count("graphs recorded");
    return SUCCESS;
}

STAND_IN_CALL cuGraphInstantiateWithFlags(GraphHandle **made, GraphHandle *graph, unsigned long long flags) {
    Guard guard(lock);
    if (Result r = check_context("cuGraphInstantiate")) return r;
    if (!context.graphs.count(graph)) return misuse("cuGraphInstantiate", INVALID_VALUE, "an unknown graph");
    if (flags != 0) return misuse("cuGraphInstantiate", NOT_SUPPORTED, "flags");
    *made = new GraphHandle{graph->graph};
    context.executables.insert(*made);
    return SUCCESS;
}

static Result destroy(const char *call, std::set<GraphHandle *> &all, GraphHandle *graph) {
    Result state = check_context(call);
    if (state && state != context.sticky) return state;
    if (!all.erase(graph)) return misuse(call, INVALID_VALUE, "an unknown graph");
    delete graph;
    return SUCCESS;
}

STAND_IN_CALL cuGraphDestroy(GraphHandle *graph) {
    Guard guard(lock);
    return destroy("cuGraphDestroy", context.graphs, graph);
}

STAND_IN_CALL cuGraphExecDestroy(GraphHandle *graph) {
    Guard guard(lock);
    return destroy("cuGraphExecDestroy", context.executables, graph);
}

STAND_IN_CALL cuGraphLaunch(GraphHandle *graph, Stream *stream) {
    Guard guard(lock);
    if (Result r = check_context("cuGraphLaunch")) return r;
    if (!context.executables.count(graph)) return misuse("cuGraphLaunch", INVALID_VALUE, "an unknown graph");
    Work work{};
    work.kind = Work::GRAPH;
    work.graph = graph->graph;
    count("graph launches");
    return enqueue("cuGraphLaunch", stream, std::move(work));
}
