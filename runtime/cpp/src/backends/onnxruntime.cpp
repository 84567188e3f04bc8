// The library's table of functions is fetched by hand: what it does where the library is older is to crash.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "backends/cuda_driver.hpp"
#include "cpu.hpp"
#include "gpu.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

ElementType element_type(ONNXTensorElementDataType type, const std::string& name) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
            return ElementType::Float32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
            return ElementType::Float16;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
            return ElementType::Float64;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
            return ElementType::UInt8;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
            return ElementType::Int8;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
            return ElementType::Int32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
            return ElementType::Int64;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
            return ElementType::Bool;
        default:
            break;
    }
    throw BackendError("the network's " + repr(name) + " has the type " + std::to_string(static_cast<int>(type)) +
                       " of ONNX, which is not supported");
}

ONNXTensorElementDataType onnx_type(ElementType type) {
    switch (type) {
        case ElementType::Float32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case ElementType::Float16:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case ElementType::Float64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
        case ElementType::UInt8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
        case ElementType::Int8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
        case ElementType::Int32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case ElementType::Int64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case ElementType::Bool:
            break;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
}

TensorSpec spec_of(const std::string& name, const Ort::TypeInfo& info) {
    if (info.GetONNXType() != ONNX_TYPE_TENSOR) {
        throw BackendError("the network's " + repr(name) + " is not a tensor, which is not supported");
    }
    const auto tensor = info.GetTensorTypeAndShapeInfo();
    TensorSpec spec{name, element_type(tensor.GetElementType(), name), {}};
    const auto extents = tensor.GetShape();
    std::vector<const char*> names(extents.size());
    tensor.GetSymbolicDimensions(names.data(), names.size());
    for (std::size_t i = 0; i < extents.size(); ++i) {
        if (extents[i] >= 0) {
            spec.shape.emplace_back(extents[i]);
        } else {
            const std::string symbol = names[i] == nullptr ? "" : names[i];
            spec.shape.emplace_back(symbol.empty() ? "dim" + std::to_string(i) : symbol);
        }
    }
    return spec;
}

std::vector<const char*> names_of(const std::vector<TensorSpec>& specs) {
    std::vector<const char*> names;
    std::transform(specs.begin(), specs.end(), std::back_inserter(names),
                   [](const TensorSpec& spec) { return spec.name.c_str(); });
    return names;
}

/// The library's functions; null if it is older than the headers that this was compiled with.
const OrtApi* find_api() {
    static const OrtApi* const api = [] {
        const OrtApi* const found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
        Ort::InitApi(found);
        return found;
    }();
    return api;
}

Ort::Env& environment() {
    // What goes wrong arrives as an exception.
    static Ort::Env instance(ORT_LOGGING_LEVEL_FATAL, "holocron");
    return instance;
}

constexpr const char* kCudaProvider = "CUDAExecutionProvider";

/// Options of ONNX Runtime's provider for CUDA.
class CudaOptions {
 public:
    explicit CudaOptions(int gpu) {
        Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&options_));
        try {
            set("device_id", std::to_string(gpu).c_str());
#if ORT_API_VERSION >= 18
            // A float32 network is computed in float32: TF32 keeps 10 bits of the significand.
            set("use_tf32", "0");
#endif
        } catch (...) {
            Ort::GetApi().ReleaseCUDAProviderOptions(options_);
            throw;
        }
    }
    CudaOptions(const CudaOptions&) = delete;
    CudaOptions& operator=(const CudaOptions&) = delete;
    ~CudaOptions() { Ort::GetApi().ReleaseCUDAProviderOptions(options_); }

    [[nodiscard]] const OrtCUDAProviderOptionsV2& get() const noexcept { return *options_; }

 private:
    void set(const char* key, const char* value) {
        Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(options_, &key, &value, 1));
    }

    OrtCUDAProviderOptionsV2* options_ = nullptr;
};

/// \param gpu its number; nothing for the processor
Ort::SessionOptions session_options(int threads, std::optional<int> gpu) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    options.SetInterOpNumThreads(1);
    options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    if (gpu) {
        options.AppendExecutionProvider_CUDA_V2(CudaOptions(*gpu).get());
    } else if (is_x86() && !has_int8_dot_product()) {
        // Sums of uint8 x int8 products saturate on these processors; this setting makes them uint8 x uint8, which is
        // exact and takes a third longer.
        options.AddConfigEntry("session.x64quantprecision", "1");
    }
    return options;
}

class OnnxRuntimeExecutable;

/// The inputs of the next run, and the outputs of the last.
class OnnxRuntimeContext final : public Context {
 public:
    explicit OnnxRuntimeContext(OnnxRuntimeExecutable& network);

    MutableTensorView stage(std::size_t index, const Shape& shape) override;
    void bind(std::size_t index, const TensorView& tensor) override;
    std::vector<TensorView> run() override;

 private:
    OnnxRuntimeExecutable& network_;
    Ort::MemoryInfo host_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    std::vector<std::vector<std::byte>> staged_;
    std::vector<Ort::Value> inputs_;
    std::vector<Ort::Value> outputs_;
};

class OnnxRuntimeExecutable final : public Executable {
 public:
    /// \param backend its name, for errors
    /// \param gpu its number; nothing for the processor
    OnnxRuntimeExecutable(std::string backend, const Network& network, int threads, std::optional<int> gpu)
        : backend_(std::move(backend)),
          session_(environment(), network.file.c_str(), session_options(threads, gpu)),
          device_(gpu ? "cuda:" + std::to_string(*gpu) : "cpu") {
        const Ort::AllocatorWithDefaultOptions allocator;
        for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
            inputs_.push_back(
                spec_of(session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i)));
        }
        for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
            outputs_.push_back(
                spec_of(session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i)));
        }
        input_names_ = names_of(inputs_);
        output_names_ = names_of(outputs_);
    }

    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept override { return inputs_; }
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept override { return outputs_; }
    [[nodiscard]] const std::string& device() const noexcept override { return device_; }

    [[nodiscard]] std::unique_ptr<Context> create_context() override {
        try {
            return std::make_unique<OnnxRuntimeContext>(*this);
        } catch (const Ort::Exception& e) {
            throw run_error(e);
        }
    }

    [[nodiscard]] BackendError run_error(const Ort::Exception& e) const {
        return BackendError(backend_ + " failed to run the network: " + one_line(e.what()));
    }

    /// Threads may call it at once.
    std::vector<Ort::Value> run(const std::vector<Ort::Value>& inputs) {
        return session_.Run(Ort::RunOptions{nullptr}, input_names_.data(), inputs.data(), inputs.size(),
                            output_names_.data(), output_names_.size());
    }

 private:
    std::string backend_;
    Ort::Session session_;
    std::string device_;
    std::vector<TensorSpec> inputs_;
    std::vector<TensorSpec> outputs_;
    std::vector<const char*> input_names_;   // of `inputs_`
    std::vector<const char*> output_names_;  // of `outputs_`
};

OnnxRuntimeContext::OnnxRuntimeContext(OnnxRuntimeExecutable& network)
    : network_(network), staged_(network.inputs().size()) {
    for (std::size_t i = 0; i < staged_.size(); ++i) {
        inputs_.emplace_back(nullptr);
    }
}

MutableTensorView OnnxRuntimeContext::stage(std::size_t index, const Shape& shape) {
    const ElementType type = network_.inputs()[index].type;
    auto& memory = staged_[index];
    memory.resize(element_count(shape) * element_size(type));
    bind(index, {memory.data(), type, shape});
    return {memory.data(), type, shape, Memory::Host};
}

void OnnxRuntimeContext::bind(std::size_t index, const TensorView& tensor) {
    try {
        // ONNX Runtime reads inputs only; its tensor has no constant form.
        auto* data = const_cast<void*>(tensor.data);
        inputs_[index] = Ort::Value::CreateTensor(host_, data, tensor.byte_count(), tensor.shape.data(),
                                                  tensor.shape.size(), onnx_type(tensor.type));
    } catch (const Ort::Exception& e) {
        throw network_.run_error(e);
    }
}

std::vector<TensorView> OnnxRuntimeContext::run() {
    try {
        outputs_ = network_.run(inputs_);
        std::vector<TensorView> views;
        for (std::size_t i = 0; i < outputs_.size(); ++i) {
            const auto info = outputs_[i].GetTensorTypeAndShapeInfo();
            views.emplace_back(outputs_[i].GetTensorRawData(), network_.outputs()[i].type, info.GetShape());
        }
        return views;
    } catch (const Ort::Exception& e) {
        throw network_.run_error(e);
    }
}

std::shared_ptr<Executable> open(const std::string& backend, const Network& network, int threads,
                                 std::optional<int> gpu) {
    const std::string where = backend + " cannot open " + network.file.string() + ": ";
    try {
        return std::make_shared<OnnxRuntimeExecutable>(backend, network, threads, gpu);
    } catch (const BackendError& e) {
        throw BackendError(where + e.what());
    } catch (const Ort::Exception& e) {
        throw BackendError(where + one_line(e.what()));
    }
}

}  // namespace

std::string onnxruntime_problem() {
    if (find_api() != nullptr) {
        return {};
    }
    return std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() +
           " is older than the headers that this runtime was built with: install 1." + std::to_string(ORT_API_VERSION) +
           " or later";
}

std::shared_ptr<Executable> open_onnxruntime(const Network& network, const SessionOptions& options) {
    std::string device = options.device;
    std::transform(device.begin(), device.end(), device.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (!device.empty() && device != "cpu") {
        throw BackendError("onnxruntime runs on the device 'cpu' only, not on " + repr(options.device));
    }
    return open("onnxruntime", network, options.threads, std::nullopt);
}

std::string onnxruntime_cuda_problem() {
    std::string problem = onnxruntime_problem();
    if (!problem.empty()) {
        return problem;
    }
    if (driver_gpu_count() == 0) {
        return "onnxruntime-cuda needs an NVIDIA GPU and its driver, and none was found";
    }
    const auto providers = Ort::GetAvailableProviders();
    if (std::find(providers.begin(), providers.end(), kCudaProvider) == providers.end()) {
        return std::string("the onnxruntime installed here has no ") + kCudaProvider +
               ": install its release for GPUs, and build the runtime with that";
    }
    return {};
}

std::shared_ptr<Executable> open_onnxruntime_cuda(const Network& network, const SessionOptions& options) {
    return open("onnxruntime-cuda", network, options.threads, gpu_index(options.device, driver_gpu_count()));
}

}  // namespace holocron::detail
