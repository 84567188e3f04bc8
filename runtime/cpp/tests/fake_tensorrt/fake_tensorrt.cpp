#include "fake_tensorrt.hpp"

#include <NvOnnxParser.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "fake_cuda.hpp"

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

Dims dims_of(const std::vector<std::int64_t>& shape) {
    Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

void check_no_error(const char* method) {
    const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
    if (cuda().last_error != cudaSuccess) {
        cuda().violate(std::string(method) + " finds an error that somebody else's call left");
    }
}

/// Counts the objects of an interface, and says when one goes before what was made of it.
class Counted {
 public:
    explicit Counted(std::string name) : name_(std::move(name)) { change(1); }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
    ~Counted() { change(-1); }

    std::shared_ptr<int> children = std::make_shared<int>(0);
    void check_childless() const {
        if (*children != 0) {
            const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
            cuda().violate(name_ + " goes before what was made of it");
        }
    }

 private:
    void change(int by) const {
        const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
        library().alive[name_] += by;
    }
    std::string name_;
};

/// A place among the children of another object.
class Child {
 public:
    explicit Child(const Counted& parent) : count_(parent.children) { change(1); }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() { change(-1); }

 private:
    void change(int by) const {
        const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
        *count_ += by;
    }
    std::shared_ptr<int> count_;
};

/// Whether a method is to refuse now.
bool refuses(const char* method, nvinfer1::ILogger& logger) {
    {
        const std::lock_guard<std::recursive_mutex> lock(cuda().mutex);
        const auto found = library().refusals.find(method);
        if (found == library().refusals.end() || found->second-- > 0) {
            return false;
        }
        library().refusals.erase(found);
    }
    logger.log(nvinfer1::ILogger::Severity::kWARNING, "a warning, which is no reason");
    logger.log(nvinfer1::ILogger::Severity::kERROR, (std::string(method) + " was told to refuse").c_str());
    logger.log(nvinfer1::ILogger::Severity::kERROR, "a consequence");
    return true;
}

class Engine;

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

#ifdef HOLOCRON_HAS_TENSORRT_RTX
class HostMemory final : public nvinfer1::IHostMemory {
 public:
    explicit HostMemory(std::string bytes) : bytes_(std::move(bytes)) {}
    [[nodiscard]] void* data() const noexcept override { return const_cast<char*>(bytes_.data()); }
    [[nodiscard]] std::size_t size() const noexcept override { return bytes_.size(); }

 private:
    Counted counted_{"IHostMemory"};
    std::string bytes_;
};

class RuntimeCache final : public nvinfer1::IRuntimeCache {
 public:
    [[nodiscard]] nvinfer1::IHostMemory* serialize() const noexcept override {
        return std::make_unique<HostMemory>(library().cache).release();
    }
    bool deserialize(void const* blob, std::size_t size) noexcept override {
        library().known_cache.assign(static_cast<const char*>(blob), size);
        return false;  // of another driver
    }

 private:
    Counted counted_{"IRuntimeCache"};
};

class RuntimeConfig final : public nvinfer1::IRuntimeConfig {
 public:
    [[nodiscard]] nvinfer1::IRuntimeCache* createRuntimeCache() const noexcept override {
        return std::make_unique<RuntimeCache>().release();
    }
    bool setRuntimeCache(nvinfer1::IRuntimeCache const& /*cache*/) noexcept override { return true; }
    bool setCudaGraphStrategy(nvinfer1::CudaGraphStrategy /*strategy*/) noexcept override { return true; }

 private:
    Counted counted_{"IRuntimeConfig"};
};
#endif

class Engine final : public nvinfer1::ICudaEngine {
 public:
    Engine(Plan opened, nvinfer1::ILogger& log, const Counted& runtime)
        : plan(std::move(opened)), logger(log), device(cuda().current[std::this_thread::get_id()]), child_(runtime) {}
    ~Engine() override { counted.check_childless(); }

#ifdef HOLOCRON_HAS_TENSORRT_RTX
    nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::IRuntimeConfig* config) noexcept override {
        if (config == nullptr) {
            cuda().violate("createExecutionContext without a configuration");
        }
        return create();
    }
    nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override {
        return std::make_unique<RuntimeConfig>().release();
    }
#else
    nvinfer1::IExecutionContext* createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy /*strategy*/) noexcept override {
        return create();
    }
#endif
    [[nodiscard]] std::int32_t getNbIOTensors() const noexcept override {
        return static_cast<std::int32_t>(plan.inputs.size() + plan.outputs.size());
    }
    [[nodiscard]] char const* getIOTensorName(std::int32_t index) const noexcept override {
        const auto i = static_cast<std::size_t>(index);
        return (i < plan.inputs.size() ? plan.inputs[i] : plan.outputs[i - plan.inputs.size()]).name.c_str();
    }
    [[nodiscard]] nvinfer1::TensorLocation getTensorLocation(char const* name) const noexcept override {
        return tensor(name).location;
    }
    [[nodiscard]] nvinfer1::TensorFormat getTensorFormat(char const* name) const noexcept override {
        return tensor(name).format;
    }
    [[nodiscard]] nvinfer1::DataType getTensorDataType(char const* name) const noexcept override {
        return tensor(name).type;
    }
    [[nodiscard]] Dims getTensorShape(char const* name) const noexcept override {
        const auto& found = tensor(name);
        Dims dims = dims_of(found.smallest);
        for (std::size_t i = 0; i < found.smallest.size(); ++i) {
            const bool varies = found.largest.empty() ? found.smallest[i] == 0 : found.smallest[i] != found.largest[i];
            dims.d[i] = varies ? -1 : found.smallest[i];
        }
        return dims;
    }
    [[nodiscard]] nvinfer1::TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return tensor(name).largest.empty() ? nvinfer1::TensorIOMode::kOUTPUT : nvinfer1::TensorIOMode::kINPUT;
    }
    [[nodiscard]] Dims getProfileShape(char const* name, std::int32_t /*profile*/,
                                       nvinfer1::OptProfileSelector select) const noexcept override {
        const auto& found = tensor(name);
        return dims_of(select == nvinfer1::OptProfileSelector::kMIN ? found.smallest : found.largest);
    }
    [[nodiscard]] std::int64_t getDeviceMemorySizeV2() const noexcept override { return plan.workspace; }

    [[nodiscard]] const PlanTensor& tensor(const std::string& name) const {
        for (const auto* tensors : {&plan.inputs, &plan.outputs}) {
            for (const auto& each : *tensors) {
                if (each.name == name) {
                    return each;
                }
            }
        }
        cuda().violate("there is no tensor " + name);
        return plan.inputs.front();
    }

    Plan plan;
    nvinfer1::ILogger& logger;
    int device;
    Counted counted{"ICudaEngine"};

 private:
    nvinfer1::IExecutionContext* create() {
        check_no_error("createExecutionContext");
        if (plan.stripped) {
            cuda().violate("an execution context of an engine without weights");
        }
        return refuses("createExecutionContext", logger) ? nullptr
                                                         : std::make_unique<ExecutionContext>(*this).release();
    }
    Child child_;
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

class Runtime final : public nvinfer1::IRuntime {
 public:
    explicit Runtime(nvinfer1::ILogger& logger) : logger_(logger) {}
    ~Runtime() override { counted_.check_childless(); }
    void setDLACore(std::int32_t core) noexcept override { library().dla_core = core; }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_ = allowed; }
    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        check_no_error("deserializeCudaEngine");
        const auto plan = parse_plan(std::string(static_cast<const char*>(blob), size));
        if (!plan || (plan->needs_host_code && !host_code_)) {
            logger_.log(nvinfer1::ILogger::Severity::kERROR, "the plan  is\nnot one");
            return nullptr;
        }
        return std::make_unique<Engine>(*plan, logger_, counted_).release();
    }

 private:
    nvinfer1::ILogger& logger_;
    bool host_code_ = false;
    Counted counted_{"IRuntime"};
};

class Refitter final : public nvinfer1::IRefitter {
 public:
    explicit Refitter(Engine& refitted) : engine(refitted) {}
    std::int32_t getMissingWeights(std::int32_t /*size*/, char const** /*names*/) noexcept override {
        return has_weights ? 0 : 1;
    }
    bool refitCudaEngine() noexcept override {
        engine.plan.stripped = false;
        return !refuses("refitCudaEngine", engine.logger);
    }

    Engine& engine;
    bool has_weights = false;

 private:
    Counted counted_{"IRefitter"};
};

class ParserRefitter final : public nvonnxparser::IParserRefitter {
 public:
    explicit ParserRefitter(Refitter& refitter) : refitter_(refitter) {}
    bool refitFromBytes(void const* model, std::size_t size, char const* /*path*/) noexcept override {
        refitter_.has_weights = std::string(static_cast<const char*>(model), size) == kWeights;
        if (!refitter_.has_weights) {
            refitter_.engine.logger.log(nvinfer1::ILogger::Severity::kERROR, "these are other weights");
        }
        return refitter_.has_weights;
    }

 private:
    Refitter& refitter_;
    Counted counted_{"IParserRefitter"};
};

}  // namespace

}  // namespace fake

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept {
    return fake::refuses("createInferRuntime", logger) ? nullptr : std::make_unique<fake::Runtime>(logger).release();
}

nvinfer1::IRefitter* nvinfer1::createInferRefitter(ICudaEngine& engine, ILogger& /*logger*/) noexcept {
    return std::make_unique<fake::Refitter>(dynamic_cast<fake::Engine&>(engine)).release();
}

nvonnxparser::IParserRefitter* nvonnxparser::createParserRefitter(nvinfer1::IRefitter& refitter,
                                                                  nvinfer1::ILogger& /*logger*/) noexcept {
    return std::make_unique<fake::ParserRefitter>(dynamic_cast<fake::Refitter&>(refitter)).release();
}

std::int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
std::int32_t getInferLibMinorVersion() noexcept { return fake::library().minor; }
std::int32_t getInferLibPatchVersion() noexcept { return fake::library().patch; }
