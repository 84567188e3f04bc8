#include <algorithm>
#include <cctype>
#include <mutex>
#include <openvino/openvino.hpp>

#include "backends/backend.hpp"

namespace holocron::detail {

namespace {

ElementType element_type(const ov::element::Type& type, const std::string& name) {
    if (type == ov::element::f32) {
        return ElementType::Float32;
    }
    if (type == ov::element::f16) {
        return ElementType::Float16;
    }
    if (type == ov::element::f64) {
        return ElementType::Float64;
    }
    if (type == ov::element::u8) {
        return ElementType::UInt8;
    }
    if (type == ov::element::i8) {
        return ElementType::Int8;
    }
    if (type == ov::element::i32) {
        return ElementType::Int32;
    }
    if (type == ov::element::i64) {
        return ElementType::Int64;
    }
    if (type == ov::element::boolean) {
        return ElementType::Bool;
    }
    throw BackendError("the network's " + repr(name) + " has the type " + type.get_type_name() +
                       ", which is not supported");
}

ov::element::Type openvino_type(ElementType type) {
    switch (type) {
        case ElementType::Float32:
            return ov::element::f32;
        case ElementType::Float16:
            return ov::element::f16;
        case ElementType::Float64:
            return ov::element::f64;
        case ElementType::UInt8:
            return ov::element::u8;
        case ElementType::Int8:
            return ov::element::i8;
        case ElementType::Int32:
            return ov::element::i32;
        case ElementType::Int64:
            return ov::element::i64;
        case ElementType::Bool:
            break;
    }
    return ov::element::boolean;
}

TensorSpec spec_of(const ov::Output<const ov::Node>& port) {
    TensorSpec spec;
    spec.name = port.get_any_name();
    spec.type = element_type(port.get_element_type(), spec.name);
    const auto& shape = port.get_partial_shape();
    if (shape.rank().is_dynamic()) {
        throw BackendError("the network's " + repr(spec.name) +
                           " has any number of dimensions: export the model again");
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i].is_static()) {
            spec.shape.emplace_back(shape[i].get_length());
        } else {
            spec.shape.emplace_back(i == 0 ? std::string("batch") : "dim" + std::to_string(i));
        }
    }
    return spec;
}

ov::Shape openvino_shape(const Shape& shape) { return {shape.begin(), shape.end()}; }

BackendError run_error(const std::exception& e) {
    return BackendError("openvino failed to run the network: " + one_line(e.what()));
}

/// An infer request, and the memory that its inputs are staged in.
class OpenVinoContext final : public Context {
 public:
    explicit OpenVinoContext(ov::CompiledModel& network)
        : request_(network.create_infer_request()),
          staged_(network.inputs().size()),
          is_set_(network.inputs().size()),
          output_count_(network.outputs().size()) {
        for (const auto& port : network.inputs()) {
            input_types_.push_back(port.get_element_type());
        }
    }

    MutableTensorView stage(std::size_t index, const Shape& shape) override {
        try {
            ov::Tensor& tensor = staged_[index];
            const ov::Shape wanted = openvino_shape(shape);
            if (!tensor || tensor.get_shape() != wanted) {
                tensor = ov::Tensor(input_types_[index], wanted);
                is_set_[index] = false;
            }
            if (!is_set_[index]) {  // OpenVINO checks it anew each time
                request_.set_input_tensor(index, tensor);
                is_set_[index] = true;
            }
            return {tensor.data(), element_type(input_types_[index], "input"), shape, Memory::Host};
        } catch (const ov::Exception& e) {
            throw run_error(e);
        }
    }

    void bind(std::size_t index, const TensorView& tensor) override {
        try {
            // OpenVINO reads inputs only; its tensor has no constant form.
            auto* data = const_cast<void*>(tensor.data);
            is_set_[index] = false;
            request_.set_input_tensor(index,
                                      ov::Tensor(openvino_type(tensor.type), openvino_shape(tensor.shape), data));
        } catch (const ov::Exception& e) {
            throw run_error(e);
        }
    }

    std::vector<TensorView> run() override {
        try {
            request_.infer();
            std::vector<TensorView> views;
            outputs_.clear();
            for (std::size_t i = 0; i < output_count_; ++i) {
                const ov::Tensor& tensor = outputs_.emplace_back(request_.get_output_tensor(i));
                const auto& shape = tensor.get_shape();
                views.emplace_back(tensor.data(), element_type(tensor.get_element_type(), "output"),
                                   Shape(shape.begin(), shape.end()));
            }
            return views;
        } catch (const ov::Exception& e) {
            throw run_error(e);
        }
    }

 private:
    ov::InferRequest request_;
    std::vector<ov::Tensor> staged_;
    std::vector<bool> is_set_;         // whether the request has what is staged
    std::vector<ov::Tensor> outputs_;  // keeps what the views of the last run look at
    std::vector<ov::element::Type> input_types_;
    std::size_t output_count_;
};

class OpenVinoExecutable final : public Executable {
 public:
    OpenVinoExecutable(ov::CompiledModel network, std::string device)
        : network_(std::move(network)), device_(std::move(device)) {
        for (const auto& port : network_.inputs()) {
            inputs_.push_back(spec_of(port));
        }
        for (const auto& port : network_.outputs()) {
            outputs_.push_back(spec_of(port));
        }
    }

    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept override { return inputs_; }
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept override { return outputs_; }
    [[nodiscard]] const std::string& device() const noexcept override { return device_; }

    [[nodiscard]] std::unique_ptr<Context> create_context() override {
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            return std::make_unique<OpenVinoContext>(network_);
        } catch (const ov::Exception& e) {
            throw run_error(e);
        }
    }

 private:
    ov::CompiledModel network_;
    std::mutex mutex_;  // of making requests: OpenVINO does not say that threads may make them at once
    std::string device_;
    std::vector<TensorSpec> inputs_;
    std::vector<TensorSpec> outputs_;
};

ov::Core& core() {
    static ov::Core instance;
    return instance;
}

std::string cased(std::string text, int (*change)(int)) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [change](unsigned char c) { return static_cast<char>(change(c)); });
    return text;
}

std::string checked_device(const std::string& device) {
    std::string name = device.empty() ? "CPU" : cased(device, std::toupper);
    const auto available = core().get_available_devices();
    if (std::find(available.begin(), available.end(), name) == available.end()) {
        std::vector<std::string> known;
        for (const auto& each : available) {
            known.push_back(cased(each, std::tolower));
        }
        throw BackendError("openvino has no device " + repr(device) + ": expected one of " + joined(known));
    }
    return name;
}

}  // namespace

std::string openvino_problem() {
    try {
        static_cast<void>(core());
        return {};
    } catch (const std::exception& e) {
        return "openvino does not start: " + one_line(e.what());
    }
}

std::shared_ptr<Executable> open_openvino(const Network& network, const SessionOptions& options) {
    const std::string device = checked_device(options.device);
    // float32 is asked for outright: on processors with AMX a float32 network would run in bfloat16.
    ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                        ov::hint::inference_precision(ov::element::f32)};
    if (device == "CPU") {
        settings.emplace(ov::inference_num_threads(options.threads * options.concurrency));
        if (options.concurrency > 1) {  // calls of one stream wait for each other
            settings.emplace(ov::num_streams(ov::streams::Num(options.concurrency)));
        }
    }
    try {
        return std::make_shared<OpenVinoExecutable>(core().compile_model(network.file.string(), device, settings),
                                                    cased(device, std::tolower));
    } catch (const BackendError& e) {
        throw BackendError("openvino cannot open " + network.file.string() + ": " + e.what());
    } catch (const std::exception& e) {
        throw BackendError("openvino cannot open " + network.file.string() + ": " + one_line(e.what()));
    }
}

}  // namespace holocron::detail
