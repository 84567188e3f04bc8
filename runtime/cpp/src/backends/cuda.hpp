/// \file
/// The part of CUDA's runtime API that running an engine takes: checked calls, and an owner for everything that is
/// made.
///
/// Whatever is made belongs to the device that is current then, see `CurrentDevice`. Destructors release in whatever
/// state the device is, and say nothing: of a lost device nothing is left to be released.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include "holocron/errors.hpp"

namespace holocron::detail {

/// A CUDA call that failed.
class CudaError : public BackendError {
 public:
    /// \param call name of the function
    /// \param status what it returned
    CudaError(const char* call, cudaError_t status);

    /// Whether the device is of no more use to this process.
    [[nodiscard]] bool lost() const noexcept { return lost_; }
    [[nodiscard]] bool out_of_memory() const noexcept { return out_of_memory_; }

 private:
    bool lost_;
    bool out_of_memory_;
};

/// \throws CudaError if a call failed
void check_cuda(const char* call, cudaError_t status);

/// Number of NVIDIA GPUs that the driver shows to this process; 0 without a driver.
[[nodiscard]] int cuda_device_count() noexcept;

/// Version of the driver, e.g. 12060; 0 if there is none.
[[nodiscard]] int cuda_driver_version() noexcept;

/// Compute capability of a GPU, e.g. `"8.7"`; nothing if the driver does not tell.
[[nodiscard]] std::optional<std::string> cuda_capability(int device);

/// The number of a GPU that was asked for.
///
/// \param device its number, `"cuda"` or `"cuda:1"`; empty for the first
/// \throws BackendError if there is no such GPU, with those that there are
[[nodiscard]] int cuda_device_index(const std::string& device);

/// Whether a GPU has the processor's memory, as on a Jetson, and can work on what the host allocates.
[[nodiscard]] bool cuda_shares_memory(int device);

/// Bytes that are free on the current device; 0 if the driver does not tell.
[[nodiscard]] std::size_t cuda_free_memory() noexcept;

/// The GPU that an address is memory of; nothing for what is no device memory.
[[nodiscard]] std::optional<int> cuda_device_of(const void* address);

/// Makes a GPU the one that the calling thread's allocations and streams are of, and then its own again.
class CurrentDevice {
 public:
    /// \throws CudaError if the device cannot be used
    explicit CurrentDevice(int device);
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;
    ~CurrentDevice();

 private:
    int before_ = 0;
    bool changed_ = false;
};

/// Memory on the device, aligned to 256 bytes at least.
class DeviceMemory {
 public:
    DeviceMemory() = default;
    /// \throws CudaError if there is not enough
    explicit DeviceMemory(std::size_t size);
    DeviceMemory(DeviceMemory&& other) noexcept : address_(std::exchange(other.address_, nullptr)) {}
    DeviceMemory& operator=(DeviceMemory&& other) noexcept {
        std::swap(address_, other.address_);
        return *this;
    }
    ~DeviceMemory();

    [[nodiscard]] void* get() const noexcept { return address_; }

 private:
    void* address_ = nullptr;
};

/// Page-locked memory of the host.
class PinnedMemory {
 public:
    /// \param mapped whether the device can work on it
    /// \throws CudaError if there is not enough
    PinnedMemory(std::size_t size, bool mapped);
    PinnedMemory(PinnedMemory&& other) noexcept : address_(std::exchange(other.address_, nullptr)) {}
    PinnedMemory& operator=(PinnedMemory&&) = delete;
    ~PinnedMemory();

    [[nodiscard]] void* get() const noexcept { return address_; }
    /// Where the device finds mapped memory. \throws CudaError
    [[nodiscard]] void* on_device() const;

 private:
    void* address_ = nullptr;
};

/// Recorded work, ready to be launched.
class CudaGraph {
 public:
    /// \throws CudaError if it cannot be made ready
    explicit CudaGraph(cudaGraph_t recorded);
    CudaGraph(CudaGraph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
    CudaGraph& operator=(CudaGraph&& other) noexcept {
        std::swap(executable_, other.executable_);
        return *this;
    }
    ~CudaGraph();

    [[nodiscard]] cudaGraphExec_t get() const noexcept { return executable_; }

 private:
    cudaGraphExec_t executable_ = nullptr;
};

/// A stream that does not wait for the default stream.
class CudaStream {
 public:
    /// \throws CudaError
    CudaStream();
    CudaStream(const CudaStream&) = delete;
    CudaStream& operator=(const CudaStream&) = delete;
    ~CudaStream();

    [[nodiscard]] cudaStream_t get() const noexcept { return stream_; }

    /// Wait until all work is done. \throws CudaError for what went wrong in it
    void synchronize() const;
    /// Copy between memory of any kinds that the device can reach. \throws CudaError
    void copy(void* target, const void* source, std::size_t size, cudaMemcpyKind kind) const;
    /// Let the next work wait for all that the other streams of this device do now, but for those made not to wait for
    /// the default stream; without waiting here. \throws CudaError
    void wait_for_default_stream() const;
    /// Do recorded work. \throws CudaError
    void launch(const CudaGraph& graph) const;

 private:
    cudaStream_t stream_ = nullptr;
};

/// Records the work that is put into a stream instead of doing it, until `end` or the end of its life. One thread's.
class CudaCapture {
 public:
    /// \throws CudaError
    explicit CudaCapture(const CudaStream& stream);
    CudaCapture(const CudaCapture&) = delete;
    CudaCapture& operator=(const CudaCapture&) = delete;
    ~CudaCapture();

    /// What was recorded. \throws CudaError if something that cannot be recorded was called
    [[nodiscard]] CudaGraph end();

 private:
    cudaStream_t stream_;
    bool recording_ = true;
};

}  // namespace holocron::detail
