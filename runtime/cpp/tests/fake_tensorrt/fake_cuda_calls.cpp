#include <algorithm>
#include <cstring>
#include <utility>

#include "fake_cuda.hpp"

namespace fake {

namespace {

constexpr std::size_t kAlignment = 256;
constexpr int kFresh = 0xCD;
constexpr int kFreed = 0xDD;

const std::map<cudaError_t, std::string> kNames{
    {cudaSuccess, "cudaSuccess"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver"},
    {cudaErrorNoDevice, "cudaErrorNoDevice"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated"},
};

/// One call of the API: the lock, and what it returns before it does anything.
struct Call {
    explicit Call(const char* name) : lock(cuda().mutex), status(cuda().enter(name)) {}
    std::unique_lock<std::recursive_mutex> lock;
    cudaError_t status;
};

cudaError_t allocate(void** address, std::size_t size, Kind kind) {
    auto memory = std::make_unique<Memory>();
    memory->storage.resize(size + kAlignment);
    const auto start = reinterpret_cast<std::uintptr_t>(memory->storage.data());
    memory->address = memory->storage.data() + (kAlignment - start % kAlignment) % kAlignment;
    memory->size = size;
    memory->kind = kind;
    memory->device = cuda().current[std::this_thread::get_id()];
    std::memset(memory->address, kFresh, size);
    *address = memory->address;
    cuda().memories.push_back(std::move(memory));
    return cudaSuccess;
}

void release(void* address, bool pinned, const std::string& call) {
    for (const auto& memory : cuda().memories) {
        if (memory->address != address) {
            continue;
        }
        if (!memory->alive) {
            return cuda().violate(call + " of memory that was freed before");
        }
        if ((memory->kind != Kind::Device) != pinned) {
            cuda().violate(call + " of memory of another kind");
        }
        const Range whole{memory->address, memory->size};
        for (auto* stream : cuda().streams) {
            for (const auto& operation : stream->pending) {
                if (cuda().lost == cudaSuccess && conflict(operation, {"", {}, {whole}, nullptr})) {
                    cuda().violate(call + " of memory that " + operation.name + " still uses");
                }
            }
        }
        memory->alive = false;
        std::memset(memory->address, kFreed, memory->size);
        return;
    }
    cuda().violate(call + " of what was never allocated");
}

template <typename Handle>
void destroy(std::set<Handle>& handles, Handle handle, const std::string& call) {
    if (handles.erase(handle) == 0) {
        return cuda().violate(call + " of what is not there");
    }
    std::default_delete<std::remove_pointer_t<Handle>>()(handle);
}

}  // namespace

}  // namespace fake

using fake::Call;
using fake::cuda;

cudaError_t cudaGetLastError() {
    const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
    const auto error = cuda().last_error;
    cuda().last_error = cudaSuccess;
    return error;
}

const char* cudaGetErrorName(cudaError_t error) { return fake::kNames.at(error).c_str(); }

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "something failed";
}

cudaError_t cudaGetDeviceCount(int* count) {
    const Call call("cudaGetDeviceCount");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    *count = cuda().devices;
    return cuda().result(cuda().devices > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = cuda().driver_version;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
    const Call call("cudaDeviceGetAttribute");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor:
            *value = 8;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 7;
            break;
        default:
            *value = cuda().integrated ? 1 : 0;
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
    const Call call("cudaMemGetInfo");
    if (call.status == cudaSuccess) {
        *total = cuda().capacity;
        *available = cuda().capacity - cuda().used();
    }
    return call.status;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    const Call call("cudaPointerGetAttributes");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    *attributes = {cudaMemoryTypeUnregistered, 0, nullptr, nullptr};
    for (const auto& memory : cuda().memories) {
        const auto* start = static_cast<const std::byte*>(address);
        if (memory->alive && start >= memory->address && start < memory->address + memory->size) {
            attributes->type = memory->kind == fake::Kind::Device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
            attributes->device = memory->device;
        }
    }
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    const Call call("cudaGetDevice");
    if (call.status == cudaSuccess) {
        *device = cuda().current[std::this_thread::get_id()];
    }
    return call.status;
}

cudaError_t cudaSetDevice(int device) {
    const Call call("cudaSetDevice");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (device < 0 || device >= cuda().devices) {
        return cuda().result(cudaErrorInvalidDevice);
    }
    cuda().current[std::this_thread::get_id()] = device;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, std::size_t size) {
    const Call call("cudaMalloc");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (cuda().used() + size > cuda().capacity) {
        return cuda().result(cudaErrorMemoryAllocation);
    }
    return fake::allocate(address, size, fake::Kind::Device);
}

cudaError_t cudaFree(void* address) {
    const Call call("cudaFree");
    fake::release(address, false, "cudaFree");
    return call.status;
}

cudaError_t cudaHostAlloc(void** address, std::size_t size, unsigned int flags) {
    const Call call("cudaHostAlloc");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    return fake::allocate(address, size, flags == cudaHostAllocMapped ? fake::Kind::Mapped : fake::Kind::Pinned);
}

cudaError_t cudaFreeHost(void* address) {
    const Call call("cudaFreeHost");
    fake::release(address, true, "cudaFreeHost");
    return call.status;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int /*flags*/) {
    const Call call("cudaHostGetDevicePointer");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    const auto* memory = cuda().memory_of({host, 1}, "cudaHostGetDevicePointer");
    if (memory == nullptr || memory->kind != fake::Kind::Mapped) {
        return cuda().result(cudaErrorInvalidValue);
    }
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
    const Call call("cudaStreamCreateWithFlags");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (flags != cudaStreamNonBlocking) {
        cuda().violate("a stream that waits for the default stream");
    }
    auto made = std::make_unique<CUstream_st>();
    made->device = cuda().current[std::this_thread::get_id()];
    *stream = *cuda().streams.insert(made.release()).first;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const Call call("cudaStreamDestroy");
    if (cuda().streams.count(stream) != 0 && cuda().lost == cudaSuccess &&
        (!stream->pending.empty() || stream->recording)) {
        cuda().violate("cudaStreamDestroy of a stream with work");
    }
    fake::destroy(cuda().streams, stream, "cudaStreamDestroy");
    return call.status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const Call call("cudaStreamSynchronize");
    if (call.status != cudaSuccess) {
        return call.status;  // the work is still under way
    }
    std::vector<fake::Operation> pending;
    pending.swap(stream->pending);
    for (const auto& operation : pending) {
        operation.action();
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    const Call call("cudaMemcpyAsync");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    const auto copy = [=] {
        const auto* to = cuda().memory_of({target, size}, "a copy's target");
        const auto* from = cuda().memory_of({source, size}, "a copy's source");
        if (to == nullptr || from == nullptr) {
            return;
        }
        if (kind == cudaMemcpyHostToDevice && (from->kind != fake::Kind::Pinned || to->kind != fake::Kind::Device)) {
            cuda().violate("a copy to the device between other kinds of memory");
        }
        if (kind == cudaMemcpyDeviceToHost && (from->kind != fake::Kind::Device || to->kind != fake::Kind::Pinned)) {
            cuda().violate("a copy to the host between other kinds of memory");
        }
        std::memcpy(target, source, size);
    };
    cuda().push(stream, {"cudaMemcpyAsync", {{source, size}}, {{target, size}}, copy});
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int /*flags*/) {
    const Call call("cudaEventCreateWithFlags");
    if (call.status == cudaSuccess) {
        *event = *cuda().events.insert(std::make_unique<CUevent_st>().release()).first;
    }
    return call.status;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const Call call("cudaEventRecord");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (stream != cudaStreamLegacy) {
        cuda().violate("an event of another than the default stream");
    }
    event->recorded = true;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int /*flags*/) {
    const Call call("cudaStreamWaitEvent");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (!event->recorded) {
        cuda().violate("waiting for an event that was not recorded");
    }
    cuda().push(stream, {"cudaStreamWaitEvent", {}, {}, [] {
                             std::vector<fake::Operation> work;
                             work.swap(cuda().default_stream);
                             for (const auto& operation : work) {
                                 operation.action();
                             }
                         }});
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const Call call("cudaEventDestroy");
    fake::destroy(cuda().events, event, "cudaEventDestroy");
    return call.status;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    const Call call("cudaStreamBeginCapture");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (mode != cudaStreamCaptureModeThreadLocal) {
        cuda().violate("a capture that other threads notice");
    }
    if (stream->recording) {
        cuda().violate("a capture within a capture");
    }
    stream->recording = std::make_unique<CUgraph_st>();
    stream->recorder = std::this_thread::get_id();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    const Call call("cudaStreamEndCapture");
    *graph = nullptr;
    auto recorded = std::move(stream->recording);
    const bool invalidated = std::exchange(stream->invalidated, false);
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (recorded == nullptr || stream->recorder != std::this_thread::get_id()) {
        cuda().violate("the end of a capture that this thread did not begin");
        return cuda().result(cudaErrorInvalidValue);
    }
    if (invalidated) {
        return cuda().result(cudaErrorStreamCaptureInvalidated);
    }
    *graph = *cuda().graphs.insert(recorded.release()).first;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    const Call call("cudaGraphInstantiateWithFlags");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    auto made = std::make_unique<CUgraphExec_st>();
    made->operations = graph->operations;
    *executable = *cuda().executables.insert(made.release()).first;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    const Call call("cudaGraphLaunch");
    if (call.status != cudaSuccess) {
        return call.status;
    }
    if (cuda().executables.count(executable) == 0) {
        cuda().violate("cudaGraphLaunch of a graph that is gone");
        return cuda().result(cudaErrorInvalidValue);
    }
    for (const auto& operation : executable->operations) {
        ++executable->running;
        auto launched = operation;
        launched.action = [executable, action = operation.action] {
            action();
            --executable->running;
        };
        cuda().push(stream, std::move(launched));
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    const Call call("cudaGraphDestroy");
    fake::destroy(cuda().graphs, graph, "cudaGraphDestroy");
    return call.status;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    const Call call("cudaGraphExecDestroy");
    if (cuda().executables.count(executable) != 0 && executable->running > 0 && cuda().lost == cudaSuccess) {
        cuda().violate("cudaGraphExecDestroy of a graph that runs");
    }
    fake::destroy(cuda().executables, executable, "cudaGraphExecDestroy");
    return call.status;
}
