/// \file
/// A small CUDA runtime in host memory that enforces the real one's rules.
///
/// Work put into a stream is done late, when somebody waits for the stream (`lazy`), or at once: what is right under
/// both does not depend on when the GPU gets to it. Freed memory is poisoned and its addresses are never given out
/// again. What breaks a rule is kept in `violations`, for the test to find.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace fake {

/// A piece of memory.
struct Range {
    const void* address = nullptr;
    std::size_t size = 0;
};

/// Work in a stream.
struct Operation {
    std::string name;
    std::vector<Range> reads;
    std::vector<Range> writes;
    std::function<void()> action;
};

enum class Kind { Device, Pinned, Mapped };

struct Memory {
    std::vector<std::byte> storage;
    std::byte* address = nullptr;
    std::size_t size = 0;
    Kind kind = Kind::Device;
    int device = 0;
    bool alive = true;
};

/// The state of all of it. One test's; `reset` between two.
class Cuda {
 public:
    std::recursive_mutex mutex;
    bool lazy = true;
    bool integrated = false;
    int devices = 1;
    int driver_version = 12060;
    std::size_t capacity = std::size_t{1} << 30;  // bytes of device memory
    cudaError_t last_error = cudaSuccess;
    std::vector<std::string> violations;
    std::map<std::string, int> calls;
    std::vector<Operation> default_stream;  // what somebody else's work has not done yet

    /// Let a call fail after it succeeded so many times more. After an error of a lost device everything fails.
    void fail(const std::string& call, cudaError_t error, int after = 0);
    void violate(const std::string& what);
    /// What is still there: allocations, streams, events, graphs.
    [[nodiscard]] std::vector<std::string> leaks() const;
    [[nodiscard]] std::size_t used() const;
    void reset();

    /// What a call returns before it does anything.
    cudaError_t enter(const char* call);
    cudaError_t result(cudaError_t error);
    /// The live allocation that a range lies in; null, and a violation, if there is none.
    Memory* memory_of(Range range, const std::string& what);
    void push(cudaStream_t stream, Operation operation);
    [[nodiscard]] bool is_capturing(cudaStream_t stream) const;
    void forget_capture(cudaStream_t stream);

    struct Fault {
        std::string call;
        cudaError_t error;
        int after;
    };
    std::vector<Fault> faults;
    cudaError_t lost = cudaSuccess;
    std::set<cudaStream_t> streams;
    std::set<cudaEvent_t> events;
    std::set<cudaGraph_t> graphs;
    std::set<cudaGraphExec_t> executables;
    std::vector<std::unique_ptr<Memory>> memories;
    std::map<std::thread::id, int> current;
};

Cuda& cuda();

/// Whether one of two operations writes what the other reads or writes.
bool conflict(const Operation& a, const Operation& b);

}  // namespace fake

struct CUgraph_st {
    std::vector<fake::Operation> operations;
};
struct CUgraphExec_st {
    std::vector<fake::Operation> operations;
    int running = 0;
};
struct CUevent_st {
    bool recorded = false;
};
struct CUstream_st {
    int device = 0;
    std::vector<fake::Operation> pending;
    std::unique_ptr<CUgraph_st> recording;
    std::thread::id recorder;
    bool invalidated = false;
};
