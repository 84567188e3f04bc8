#include "backends/cuda.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "gpu.hpp"

namespace holocron::detail {

namespace {

// After one of these the process's CUDA context answers every call with an error: nothing on the device can be saved.
constexpr std::array<std::string_view, 17> kLost{"cudaErrorIllegalAddress",
                                                 "cudaErrorLaunchFailure",
                                                 "cudaErrorLaunchTimeout",
                                                 "cudaErrorHardwareStackError",
                                                 "cudaErrorIllegalInstruction",
                                                 "cudaErrorMisalignedAddress",
                                                 "cudaErrorInvalidAddressSpace",
                                                 "cudaErrorInvalidPc",
                                                 "cudaErrorAssert",
                                                 "cudaErrorECCUncorrectable",
                                                 "cudaErrorNvlinkUncorrectable",
                                                 "cudaErrorDevicesUnavailable",
                                                 "cudaErrorDeviceUninitialized",
                                                 "cudaErrorNoDevice",
                                                 "cudaErrorSystemNotReady",
                                                 "cudaErrorContained",
                                                 "cudaErrorUnknown"};

/// A failed call is remembered by CUDA, and whoever asks next, TensorRT say, would take the error for its own.
void forget_error() noexcept { static_cast<void>(cudaGetLastError()); }

void released(cudaError_t status) noexcept {
    if (status != cudaSuccess) {
        forget_error();
    }
}

std::string described(const char* call, cudaError_t status) {
    return std::string(call) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check_cuda("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, device));
    return value;
}

/// Destroys what was recorded: what is made of it is a copy.
struct RecordedGraph {
    explicit RecordedGraph(cudaGraph_t recorded) : graph(recorded) {}
    RecordedGraph(const RecordedGraph&) = delete;
    RecordedGraph& operator=(const RecordedGraph&) = delete;
    ~RecordedGraph() {
        if (graph != nullptr) {
            released(cudaGraphDestroy(graph));
        }
    }
    cudaGraph_t graph;
};

struct Event {
    Event() { check_cuda("cudaEventCreateWithFlags", cudaEventCreateWithFlags(&event, cudaEventDisableTiming)); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    ~Event() { released(cudaEventDestroy(event)); }  // CUDA keeps it until nothing waits for it
    cudaEvent_t event = nullptr;
};

}  // namespace

CudaError::CudaError(const char* call, cudaError_t status)
    : BackendError(described(call, status)),
      lost_(std::find(kLost.begin(), kLost.end(), cudaGetErrorName(status)) != kLost.end()),
      out_of_memory_(status == cudaErrorMemoryAllocation) {}

void check_cuda(const char* call, cudaError_t status) {
    if (status != cudaSuccess) {
        forget_error();
        throw CudaError(call, status);
    }
}

int cuda_device_count() noexcept {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        forget_error();
        return 0;
    }
    return count;
}

int cuda_driver_version() noexcept {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess) {
        forget_error();
        return 0;
    }
    return version;
}

std::optional<std::string> cuda_capability(int device) {
    try {
        return std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) + "." +
               std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
    } catch (const CudaError&) {
        return std::nullopt;
    }
}

int cuda_device_index(const std::string& device) { return gpu_index(device, cuda_device_count()); }

bool cuda_shares_memory(int device) {
    return attribute(cudaDevAttrIntegrated, device) != 0 && attribute(cudaDevAttrCanMapHostMemory, device) != 0;
}

std::size_t cuda_free_memory() noexcept {
    std::size_t available = 0;
    std::size_t total = 0;
    if (cudaMemGetInfo(&available, &total) != cudaSuccess) {
        forget_error();
        return 0;
    }
    return available;
}

std::optional<int> cuda_device_of(const void* address) {
    cudaPointerAttributes attributes{};
    check_cuda("cudaPointerGetAttributes", cudaPointerGetAttributes(&attributes, address));
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
        return std::nullopt;
    }
    return attributes.device;
}

CurrentDevice::CurrentDevice(int device) {
    check_cuda("cudaGetDevice", cudaGetDevice(&before_));
    if (before_ != device) {
        check_cuda("cudaSetDevice", cudaSetDevice(device));
        changed_ = true;
    }
}

CurrentDevice::~CurrentDevice() {
    if (changed_) {
        released(cudaSetDevice(before_));  // if that fails, so does the caller's next call, which says why
    }
}

DeviceMemory::DeviceMemory(std::size_t size) { check_cuda("cudaMalloc", cudaMalloc(&address_, size)); }

DeviceMemory::~DeviceMemory() {
    if (address_ != nullptr) {
        released(cudaFree(address_));
    }
}

PinnedMemory::PinnedMemory(std::size_t size, bool mapped) {
    const unsigned int flags = mapped ? cudaHostAllocMapped : cudaHostAllocDefault;
    check_cuda("cudaHostAlloc", cudaHostAlloc(&address_, size, flags));
}

PinnedMemory::~PinnedMemory() {
    if (address_ != nullptr) {
        released(cudaFreeHost(address_));
    }
}

void* PinnedMemory::on_device() const {
    void* found = nullptr;
    check_cuda("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&found, address_, 0));
    return found;
}

CudaGraph::CudaGraph(cudaGraph_t recorded) {
    check_cuda("cudaGraphInstantiateWithFlags", cudaGraphInstantiateWithFlags(&executable_, recorded, 0));
}

CudaGraph::~CudaGraph() {
    if (executable_ != nullptr) {
        released(cudaGraphExecDestroy(executable_));
    }
}

CudaStream::CudaStream() {
    check_cuda("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaStream::~CudaStream() { released(cudaStreamDestroy(stream_)); }

void CudaStream::synchronize() const { check_cuda("cudaStreamSynchronize", cudaStreamSynchronize(stream_)); }

void CudaStream::copy(void* target, const void* source, std::size_t size, cudaMemcpyKind kind) const {
    check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(target, source, size, kind, stream_));
}

void CudaStream::wait_for_default_stream() const {
    const Event event;
    check_cuda("cudaEventRecord", cudaEventRecord(event.event, cudaStreamLegacy));
    check_cuda("cudaStreamWaitEvent", cudaStreamWaitEvent(stream_, event.event, 0));
}

void CudaStream::launch(const CudaGraph& graph) const {
    check_cuda("cudaGraphLaunch", cudaGraphLaunch(graph.get(), stream_));
}

CudaCapture::CudaCapture(const CudaStream& stream) : stream_(stream.get()) {
    // Thread-local: other threads may go on allocating while this one records.
    check_cuda("cudaStreamBeginCapture", cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
}

CudaCapture::~CudaCapture() {
    if (recording_) {
        cudaGraph_t recorded = nullptr;
        released(cudaStreamEndCapture(stream_, &recorded));
        const RecordedGraph forgotten(recorded);
    }
}

CudaGraph CudaCapture::end() {
    recording_ = false;  // also where it fails: the stream is itself again
    cudaGraph_t recorded = nullptr;
    check_cuda("cudaStreamEndCapture", cudaStreamEndCapture(stream_, &recorded));
    const RecordedGraph original(recorded);
    return CudaGraph(original.graph);
}

}  // namespace holocron::detail
