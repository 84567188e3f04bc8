#include "fake_tensorrt.hpp"

#include <NvOnnxParser.h>

#include <algorithm>
#include <memory>

#include "fake_cuda.hpp"
#include "fake_engine.hpp"

namespace fake {

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape) {
    nvinfer1::Dims dims{};
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

namespace {

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

#ifdef HOLOCRON_HAS_TENSORRT_RTX
nvinfer1::IRuntimeConfig* Engine::createRuntimeConfig() noexcept { return std::make_unique<RuntimeConfig>().release(); }
#endif

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
