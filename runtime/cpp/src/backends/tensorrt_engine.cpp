#include "backends/tensorrt_engine.hpp"

#include <NvOnnxParser.h>

#include <exception>
#include <string_view>

#include "backends/tensorrt_library.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

ElementType element_type(nvinfer1::DataType type, const std::string& name) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT:
            return ElementType::Float32;
        case nvinfer1::DataType::kHALF:
            return ElementType::Float16;
        case nvinfer1::DataType::kINT8:
            return ElementType::Int8;
        case nvinfer1::DataType::kUINT8:
            return ElementType::UInt8;
        case nvinfer1::DataType::kINT32:
            return ElementType::Int32;
        case nvinfer1::DataType::kINT64:
            return ElementType::Int64;
        case nvinfer1::DataType::kBOOL:
            return ElementType::Bool;
        default:
            break;
    }
    throw BackendError("the engine's " + repr(name) + " has the type " + std::to_string(static_cast<int>(type)) +
                       " of nvinfer1::DataType, which is not supported");
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + (dims.nbDims < 0 ? 0 : dims.nbDims)}; }

}  // namespace

bool InputRange::takes(const Shape& shape) const {
    if (shape.size() != smallest.size()) {
        return false;
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] < smallest[i] || shape[i] > largest[i]) {
            return false;
        }
    }
    return true;
}

OpenEngine::OpenEngine(const Network& network, bool cuda_graphs) : cache_file_(network.cache, network.plan) {
    logger().clear();
    runtime_.reset(nvinfer1::createInferRuntime(logger()));
    if (runtime_ == nullptr) {
        throw library_error("does not start");
    }
    deserialize(network);
    if (network.engine && network.engine->stripped) {
        refit(network.weights);
    }
    read_tensors();
#ifdef HOLOCRON_HAS_TENSORRT_RTX
    configure(cuda_graphs);
#else
    static_cast<void>(cuda_graphs);  // the contexts record them
    // Contexts that run one after the other share their activations; each of TensorRT-RTX has its own.
    workspace_size_ = static_cast<std::size_t>(engine_->getDeviceMemorySizeV2());
#endif
}

void OpenEngine::deserialize(const Network& network) {
    if (network.engine && network.engine->dla_core) {
        runtime_->setDLACore(*network.engine->dla_core);
    }
    if (network.engine && network.engine->version_compatible) {
        runtime_->setEngineHostCodeAllowed(true);  // such an engine brings the code that runs it
    }
    logger().clear();
    engine_.reset(runtime_->deserializeCudaEngine(network.plan.data(), network.plan.size()));
    if (engine_ == nullptr) {
        throw library_error("does not open the engine");
    }
}

void OpenEngine::refit(const std::string& weights) {
    if (weights.empty()) {
        throw BackendError("the engine is without its weights, which are in its bundle's ONNX file: open the bundle");
    }
    constexpr const char* kRefused =
        "does not take the weights of the ONNX file, which is not the one it was built from";
    logger().clear();
    const std::unique_ptr<nvinfer1::IRefitter> refitter(nvinfer1::createInferRefitter(*engine_, logger()));
    if (refitter == nullptr) {
        throw library_error(kRefused);
    }
    const std::unique_ptr<nvonnxparser::IParserRefitter> parser(
        nvonnxparser::createParserRefitter(*refitter, logger()));
    if (parser == nullptr || !parser->refitFromBytes(weights.data(), weights.size()) ||
        refitter->getMissingWeights(0, nullptr) != 0 || !refitter->refitCudaEngine()) {
        throw library_error(kRefused);
    }
}

void OpenEngine::read_tensors() {
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
        read_tensor(engine_->getIOTensorName(i));
    }
    if (inputs_.empty()) {
        throw BackendError("the engine has no input: build it again");
    }
}

void OpenEngine::read_tensor(const char* name) {
    using nvinfer1::OptProfileSelector;
    TensorSpec spec{name, ElementType::Float32, {}};
    if (engine_->getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
        throw BackendError("the engine's " + repr(name) +
                           " is a shape, not data: this backend does not run such engines");
    }
    if (engine_->getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR) {
        throw BackendError("the engine's " + repr(name) + " is not laid out as rows and columns: build it again");
    }
    spec.type = element_type(engine_->getTensorDataType(name), spec.name);
    for (const auto extent : shape_of(engine_->getTensorShape(name))) {
        if (extent >= 0) {
            spec.shape.emplace_back(extent);
        } else {
            const auto axis = spec.shape.size();
            spec.shape.emplace_back(axis == 0 ? std::string("batch") : "dim" + std::to_string(axis));
        }
    }
    if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT) {
        outputs_.push_back(std::move(spec));
        return;
    }
    InputRange range{shape_of(engine_->getProfileShape(name, 0, OptProfileSelector::kMIN)),
                     shape_of(engine_->getProfileShape(name, 0, OptProfileSelector::kMAX))};
    if (range.smallest.size() != spec.shape.size() || range.largest.size() != spec.shape.size()) {
        throw library_error("does not say which shapes the engine takes for " + repr(name));
    }
    inputs_.push_back(std::move(spec));
    ranges_.push_back(std::move(range));
}

std::unique_ptr<nvinfer1::IExecutionContext> OpenEngine::create_context() {
    const std::lock_guard<std::mutex> lock(mutex_);
    logger().clear();
#ifdef HOLOCRON_HAS_TENSORRT_RTX
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext(config_.get()));
#else
    std::unique_ptr<nvinfer1::IExecutionContext> context(
        engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
#endif
    if (context == nullptr) {
        throw library_error("gives no execution context");
    }
    // An engine that was built to tell of its layers would otherwise mark each one for a profiler, in every run.
    context->setNvtxVerbosity(nvinfer1::ProfilingVerbosity::kNONE);
    return context;
}

#ifdef HOLOCRON_HAS_TENSORRT_RTX

void OpenEngine::configure(bool cuda_graphs) {
    config_.reset(engine_->createRuntimeConfig());
    if (config_ == nullptr) {
        throw library_error("gives no runtime configuration");
    }
    if (cuda_graphs) {
        config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
    }
    cache_.reset(config_->createRuntimeCache());
    if (cache_ == nullptr) {
        return;
    }
    if (const auto known = cache_file_.read()) {
        // False where it is of another driver or GPU: then it starts empty.
        static_cast<void>(cache_->deserialize(known->data(), known->size()));
    }
    config_->setRuntimeCache(*cache_);
}

void OpenEngine::save_cache() {
    if (cache_ == nullptr) {
        return;
    }
    const std::unique_ptr<nvinfer1::IHostMemory> blob(cache_->serialize());
    if (blob != nullptr && blob->data() != nullptr) {
        cache_file_.write({static_cast<const char*>(blob->data()), blob->size()});
    }
}

OpenEngine::~OpenEngine() {
    try {
        save_cache();
    } catch (const std::exception&) {
        return;  // a cache is only a cache
    }
}

#else

OpenEngine::~OpenEngine() = default;

#endif

}  // namespace holocron::detail
