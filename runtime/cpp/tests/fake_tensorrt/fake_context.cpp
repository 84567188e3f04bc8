#include <cstring>
#include <map>
#include <memory>
#include <numeric>

#include "fake_cuda.hpp"
#include "fake_engine.hpp"
#include "fake_tensorrt.hpp"

namespace fake {

namespace {

using nvinfer1::Dims;

constexpr std::uintptr_t kAlignment = 256;

std::size_t element_size(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32:
            return 4;
        case nvinfer1::DataType::kHALF:
            return 2;
        case nvinfer1::DataType::kINT64:
            return 8;
        default:
            return 1;
    }
}

std::size_t count_of(const std::vector<std::int64_t>& shape) {
    return std::accumulate(shape.begin(), shape.end(), std::size_t{1},
                           [](std::size_t product, std::int64_t n) { return product * static_cast<std::size_t>(n); });
}

class ExecutionContext final : public nvinfer1::IExecutionContext {
 public:
    explicit ExecutionContext(Engine& engine);
    ~ExecutionContext() override;
    bool setInputShape(char const* name, Dims const& dims) noexcept override;
    std::int32_t inferShapes(std::int32_t most, char const** names) noexcept override;
    [[nodiscard]] Dims getTensorShape(char const* name) const noexcept override;
    bool setTensorAddress(char const* name, void* address) noexcept override;
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override;
    bool setNvtxVerbosity(nvinfer1::ProfilingVerbosity /*verbosity*/) noexcept override { return true; }
    bool enqueueV3(cudaStream_t stream) noexcept override;

 private:
    void changes(const char* method);
    [[nodiscard]] std::vector<std::int64_t> shape_of(const PlanTensor& tensor, bool is_input) const;

    Counted counted_{"IExecutionContext"};
    Engine& engine_;
    std::unique_ptr<Child> child_;
    std::map<std::string, std::vector<std::int64_t>> shapes_;
    std::map<std::string, void*> addresses_;
    Range workspace_;
    bool has_run_ = false;
    bool was_recorded_ = false;
    std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);
};

ExecutionContext::ExecutionContext(Engine& engine) : engine_(engine), child_(std::make_unique<Child>(engine.counted)) {}

ExecutionContext::~ExecutionContext() {
    const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
    *is_alive_ = false;
}

void ExecutionContext::changes(const char* method) {
    if (was_recorded_) {
        const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
        cuda().violate(std::string(method) + " of a context that was recorded");
    }
}

bool ExecutionContext::setInputShape(char const* name, Dims const& dims) noexcept {
    changes("setInputShape");
    if (refuses("setInputShape", engine_.logger)) {
        return false;
    }
    const auto& tensor = engine_.tensor(name);
    std::vector<std::int64_t> shape(dims.d, dims.d + dims.nbDims);
    for (std::size_t i = 0; i < tensor.smallest.size(); ++i) {
        if (shape.size() != tensor.smallest.size() || shape[i] < tensor.smallest[i] || shape[i] > tensor.largest[i]) {
            cuda().violate("a shape beyond the profile");
            return false;
        }
    }
    shapes_[name] = std::move(shape);
    has_run_ = false;
    return true;
}

std::int32_t ExecutionContext::inferShapes(std::int32_t /*most*/, char const** /*names*/) noexcept {
    if (refuses("inferShapes", engine_.logger)) {
        return -1;
    }
    if (engine_.plan.data_dependent) {
        return 1;
    }
    return shapes_.size() == engine_.plan.inputs.size() ? 0 : 1;
}

std::vector<std::int64_t> ExecutionContext::shape_of(const PlanTensor& tensor, bool is_input) const {
    if (is_input) {
        return shapes_.at(tensor.name);
    }
    auto shape = tensor.smallest;
    for (auto& extent : shape) {
        extent = extent == 0 ? shapes_.at(engine_.plan.inputs.front().name).front() : extent;
    }
    return shape;
}

Dims ExecutionContext::getTensorShape(char const* name) const noexcept {
    const auto& tensor = engine_.tensor(name);
    return dims_of(shape_of(tensor, !tensor.largest.empty()));
}

bool ExecutionContext::setTensorAddress(char const* name, void* address) noexcept {
    changes("setTensorAddress");
    if (refuses("setTensorAddress", engine_.logger)) {
        return false;
    }
    addresses_[name] = address;
    return true;
}

void ExecutionContext::setDeviceMemoryV2(void* memory, std::int64_t size) noexcept {
    changes("setDeviceMemoryV2");
    workspace_ = {memory, static_cast<std::size_t>(size)};
}

bool ExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
    const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
    check_no_error("enqueueV3");
    if (refuses("enqueueV3", engine_.logger)) {
        return false;
    }
    if (cuda().lost != cudaSuccess) {
        engine_.logger.log(nvinfer1::ILogger::Severity::kERROR, "CUDA is lost");
        return false;
    }
    const bool recording = cuda().is_capturing(stream);
    if (recording && !has_run_) {
        cuda().violate("a context is recorded before it ran");
    }
    if (recording && !engine_.plan.capturable) {
        stream->invalidated = true;
        engine_.logger.log(nvinfer1::ILogger::Severity::kERROR, "this engine cannot be recorded");
        return false;
    }
    Operation operation{"enqueueV3", {}, {}, nullptr};
    struct Tensor {
        std::vector<std::int64_t> shape;
        std::size_t element;
        std::byte* address;
    };
    const auto collect = [&](const std::vector<PlanTensor>& tensors, bool is_input, std::vector<Range>& ranges) {
        std::vector<Tensor> found;
        for (const auto& tensor : tensors) {
            const auto shape = shape_of(tensor, is_input);
            auto* address = static_cast<std::byte*>(addresses_[tensor.name]);
            if (reinterpret_cast<std::uintptr_t>(address) % kAlignment != 0) {
                cuda().violate("an address that is not aligned");
            }
            ranges.push_back({address, count_of(shape) * element_size(tensor.type)});
            const auto* memory = cuda().memory_of(ranges.back(), "enqueueV3");
            if (memory != nullptr && memory->kind == Kind::Pinned) {
                cuda().violate("enqueueV3 on memory that the device cannot see");
            }
            found.push_back({shape, element_size(tensor.type), address});
        }
        return found;
    };
    const auto inputs = collect(engine_.plan.inputs, true, operation.reads);
    const auto outputs = collect(engine_.plan.outputs, false, operation.writes);
#ifndef HOLOCRON_HAS_TENSORRT_RTX
    if (engine_.plan.workspace > 0) {
        operation.writes.push_back(workspace_);
        if (workspace_.size < static_cast<std::size_t>(engine_.plan.workspace)) {
            cuda().violate("enqueueV3 without memory for activations");
        }
    }
#endif
    operation.action = [inputs, outputs, is_alive = is_alive_, reads = operation.reads, writes = operation.writes] {
        if (!*is_alive) {
            cuda().violate("a context runs after it is gone");
        }
        for (const auto* ranges : {&reads, &writes}) {
            for (const auto& range : *ranges) {
                if (cuda().memory_of(range, "enqueueV3") == nullptr) {
                    return;
                }
            }
        }
        const auto batch = static_cast<std::size_t>(inputs.front().shape.front());
        for (std::size_t entry = 0; entry < batch; ++entry) {
            std::uint32_t sum = 0;
            for (const auto& input : inputs) {
                const std::size_t size = count_of(input.shape) / batch * input.element;
                for (std::size_t i = 0; i < size; ++i) {
                    sum += static_cast<std::uint32_t>(input.address[entry * size + i]);
                }
            }
            for (const auto& output : outputs) {
                const std::size_t count = count_of(output.shape) / batch;
                for (std::size_t i = 0; i < count; ++i) {
                    const auto value = static_cast<float>(sum + i);
                    std::memcpy(output.address + (entry * count + i) * sizeof(float), &value, sizeof(float));
                }
            }
        }
    };
    has_run_ = true;
    was_recorded_ = was_recorded_ || recording;
    cuda().push(stream, std::move(operation));
    return true;
}

}  // namespace

nvinfer1::IExecutionContext* Engine::create() {
    check_no_error("createExecutionContext");
    if (plan.stripped) {
        cuda().violate("an execution context of an engine without weights");
    }
    return refuses("createExecutionContext", logger) ? nullptr : std::make_unique<ExecutionContext>(*this).release();
}

}  // namespace fake
