#include "fake_cuda.hpp"

#include <algorithm>

namespace fake {

namespace {

// What a thread that records may not call: it would wait for the device, or make memory.
const std::set<std::string> kForbiddenInCapture{
    "cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaStreamSynchronize", "cudaMemGetInfo"};

bool overlap(const Range& a, const Range& b) {
    const auto* left = static_cast<const std::byte*>(a.address);
    const auto* right = static_cast<const std::byte*>(b.address);
    return left < right + b.size && right < left + a.size;
}

}  // namespace

bool conflict(const Operation& a, const Operation& b) {
    const auto meets = [](const std::vector<Range>& x, const std::vector<Range>& y) {
        return std::any_of(x.begin(), x.end(), [&](const Range& one) {
            return std::any_of(y.begin(), y.end(), [&](const Range& other) { return overlap(one, other); });
        });
    };
    return meets(a.writes, b.writes) || meets(a.writes, b.reads) || meets(a.reads, b.writes);
}

Cuda& cuda() {
    static Cuda instance;
    return instance;
}

void Cuda::fail(const std::string& call, cudaError_t error, int after) { faults.push_back({call, error, after}); }

void Cuda::violate(const std::string& what) { violations.push_back(what); }

cudaError_t Cuda::result(cudaError_t error) {
    if (error != cudaSuccess) {
        last_error = error;
        if (error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure) {
            lost = error;
        }
    }
    return error;
}

cudaError_t Cuda::enter(const char* call) {
    ++calls[call];
    if (kForbiddenInCapture.count(call) != 0) {
        for (auto* stream : streams) {
            if (stream->recording && stream->recorder == std::this_thread::get_id()) {
                violate(std::string(call) + " while this thread records");
                stream->invalidated = true;
                return result(cudaErrorStreamCaptureUnsupported);
            }
        }
    }
    if (lost != cudaSuccess) {
        return result(lost);
    }
    for (auto fault = faults.begin(); fault != faults.end(); ++fault) {
        if (fault->call == call && fault->after-- == 0) {
            const cudaError_t error = fault->error;
            faults.erase(fault);
            return result(error);
        }
    }
    return cudaSuccess;
}

Memory* Cuda::memory_of(Range range, const std::string& what) {
    const auto* start = static_cast<const std::byte*>(range.address);
    for (const auto& memory : memories) {
        if (start >= memory->address && start < memory->address + memory->size) {
            if (!memory->alive) {
                violate(what + " uses freed memory");
                return nullptr;
            }
            if (start + range.size > memory->address + memory->size) {
                violate(what + " goes beyond its memory");
                return nullptr;
            }
            return memory.get();
        }
    }
    violate(what + " uses memory that was never allocated");
    return nullptr;
}

std::size_t Cuda::used() const {
    std::size_t sum = 0;
    for (const auto& memory : memories) {
        sum += memory->alive && memory->kind == Kind::Device ? memory->size : 0;
    }
    return sum;
}

void Cuda::push(cudaStream_t stream, Operation operation) {
    if (streams.count(stream) == 0) {
        return violate(operation.name + " in a stream that is gone");
    }
    if (current[std::this_thread::get_id()] != stream->device) {
        violate(operation.name + " in a stream of another device");
    }
    if (stream->recording) {
        if (stream->recorder != std::this_thread::get_id()) {
            violate(operation.name + " from a thread that does not record");
        }
        stream->recording->operations.push_back(std::move(operation));
        return;
    }
    for (auto* other : streams) {
        if (other != stream && std::any_of(other->pending.begin(), other->pending.end(),
                                           [&](const Operation& each) { return conflict(each, operation); })) {
            violate(operation.name + " races with another stream");
        }
    }
    if (lazy) {
        stream->pending.push_back(std::move(operation));
    } else {
        operation.action();
    }
}

bool Cuda::is_capturing(cudaStream_t stream) const {
    return streams.count(stream) != 0 && stream->recording != nullptr;
}

void Cuda::forget_capture(cudaStream_t stream) {
    stream->recording.reset();
    stream->invalidated = false;
}

std::vector<std::string> Cuda::leaks() const {
    std::vector<std::string> found;
    for (const auto& memory : memories) {
        if (memory->alive) {
            found.push_back(std::to_string(memory->size) + " bytes");
        }
    }
    found.insert(found.end(), streams.size(), "a stream");
    found.insert(found.end(), events.size(), "an event");
    found.insert(found.end(), graphs.size(), "a graph");
    found.insert(found.end(), executables.size(), "an executable graph");
    return found;
}

void Cuda::reset() {
    const auto destroy = [](auto& handles) {
        for (auto* handle : handles) {
            std::default_delete<std::remove_pointer_t<decltype(handle)>>()(handle);
        }
        handles.clear();
    };
    destroy(streams);
    destroy(events);
    destroy(graphs);
    destroy(executables);
    memories.clear();
    violations.clear();
    calls.clear();
    faults.clear();
    default_stream.clear();
    current.clear();
    lost = last_error = cudaSuccess;
    lazy = true;
    integrated = false;
    devices = 1;
    driver_version = 12060;
    capacity = std::size_t{1} << 30;
}

}  // namespace fake
