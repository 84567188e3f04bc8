/// \file
/// What the fake TensorRT is made of.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fake_cuda.hpp"
#include "fake_tensorrt.hpp"

namespace fake {

/// The other form of a shape.
[[nodiscard]] nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape);

/// A call of TensorRT's that finds an error which somebody else's call of CUDA left would take it for its own.
void check_no_error(const char* method);

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
bool refuses(const char* method, nvinfer1::ILogger& logger);

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
    nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override;
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
    [[nodiscard]] nvinfer1::Dims getTensorShape(char const* name) const noexcept override {
        const auto& found = tensor(name);
        nvinfer1::Dims dims = dims_of(found.smallest);
        for (std::size_t i = 0; i < found.smallest.size(); ++i) {
            const bool varies = found.largest.empty() ? found.smallest[i] == 0 : found.smallest[i] != found.largest[i];
            dims.d[i] = varies ? -1 : found.smallest[i];
        }
        return dims;
    }
    [[nodiscard]] nvinfer1::TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return tensor(name).largest.empty() ? nvinfer1::TensorIOMode::kOUTPUT : nvinfer1::TensorIOMode::kINPUT;
    }
    [[nodiscard]] nvinfer1::Dims getProfileShape(char const* name, std::int32_t /*profile*/,
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
    nvinfer1::IExecutionContext* create();
    Child child_;
};

}  // namespace fake
