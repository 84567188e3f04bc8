#include "backends/tensorrt_context.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/tensorrt_library.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

constexpr std::size_t kAlignment = 256;  // what TensorRT asks of the address of a tensor
constexpr std::size_t kMostShapes = 8;

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

std::vector<Shape> largest_shapes(const OpenEngine& engine) {
    std::vector<Shape> shapes;
    for (const auto& range : engine.ranges()) {
        shapes.push_back(range.largest);
    }
    return shapes;
}

std::string tuples(const std::vector<Shape>& shapes) {
    std::vector<std::string> texts;
    std::transform(shapes.begin(), shapes.end(), std::back_inserter(texts),
                   [](const Shape& shape) { return tuple(shape); });
    return "(" + joined(texts) + (texts.size() == 1 ? ",)" : ")");
}

[[noreturn]] void throw_run_error(const CudaError& error) {
    const std::string message = std::string(kLibrary) + " failed to run the network: " + error.what();
    if (error.lost()) {
        throw DeviceLost(message + "; the device is lost to this process: restart the program", error.what());
    }
    const char* remedy = error.out_of_memory() ? "; end other programs on the GPU, or feed less at once" : "";
    throw BackendError(message + remedy);
}

}  // namespace

Layout::Layout(const std::vector<TensorSpec>& specs, const std::vector<Shape>& shapes) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
        const std::size_t bytes = element_count(shapes[i]) * element_size(specs[i].type);
        places.push_back({shapes[i], size, bytes});
        size += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    size = std::max(size, kAlignment);
}

TransferBuffer::TransferBuffer(std::size_t size, bool shared)
    : size_(size),
      host_(size, shared),
      device_(shared ? DeviceMemory() : DeviceMemory(size)),
      address_(static_cast<std::byte*>(shared ? host_.on_device() : device_.get())) {}

ShapeContext::ShapeContext(OpenEngine& engine, std::vector<Shape> shapes, bool records)
    : engine_(engine), shapes_(std::move(shapes)), records_(records), context_(engine.create_context()) {
    logger().clear();
    const auto& inputs = engine.inputs();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        if (!context_->setInputShape(inputs[i].name.c_str(), dims_of(shapes_[i]))) {
            throw library_error("does not take " + repr(inputs[i].name) + " of " + tuple(shapes_[i]));
        }
    }
    const auto unknown = context_->inferShapes(0, nullptr);
    if (unknown < 0) {
        throw library_error("finds no output shapes for " + tuples(shapes_));
    }
    std::vector<Shape> found;
    for (const auto& spec : engine.outputs()) {
        const auto dims = context_->getTensorShape(spec.name.c_str());
        found.emplace_back(dims.d, dims.d + std::max(dims.nbDims, 0));
        const bool is_known = dims.nbDims == static_cast<int32_t>(spec.shape.size()) &&
                              std::all_of(found.back().begin(), found.back().end(), [](auto n) { return n >= 0; });
        if (unknown > 0 || !is_known) {
            throw BackendError("the shapes of the engine's outputs depend on the data: this backend does not run it");
        }
    }
    outputs_.emplace(engine.outputs(), found);
}

void ShapeContext::bind(const Layout& input_layout, const TransferBuffer& inputs, const TransferBuffer& outputs,
                        void* workspace) {
    logger().clear();
    if (engine_.workspace_size() > 0) {
        context_->setDeviceMemoryV2(workspace, static_cast<std::int64_t>(engine_.workspace_size()));
    }
    const auto set_addresses = [this](const auto& specs, const Layout& layout, std::byte* buffer) {
        for (std::size_t i = 0; i < specs.size(); ++i) {
            if (!context_->setTensorAddress(specs[i].name.c_str(), buffer + layout.places[i].offset)) {
                throw library_error("does not take an address for " + repr(specs[i].name));
            }
        }
    };
    set_addresses(engine_.inputs(), input_layout, inputs.device());
    set_addresses(engine_.outputs(), *outputs_, outputs.device());
}

void ShapeContext::launch(const CudaStream& stream) {
    if (!graph_ && records_ && has_run_) {
        graph_ = record(stream);
    }
    if (graph_) {
        stream.launch(*graph_);
        return;
    }
    logger().clear();
    if (!context_->enqueueV3(stream.get())) {
        throw library_error("failed to run the network");
    }
    has_run_ = true;
}

/// The run as a CUDA graph; nothing, and no further attempt, if this engine cannot be recorded.
std::optional<CudaGraph> ShapeContext::record(const CudaStream& stream) {
    records_ = false;
    try {
        CudaCapture capture(stream);
        if (!context_->enqueueV3(stream.get())) {
            return std::nullopt;
        }
        return capture.end();
    } catch (const CudaError& e) {
        if (e.lost()) {
            throw;
        }
        return std::nullopt;  // it runs without
    }
}

/// Destroyed from the last to the first, once nothing is under way: the contexts, their buffers, the stream.
struct TensorRtContext::Resources {
    CudaStream stream;
    TransferBuffer inputs;
    TransferBuffer outputs;
    DeviceMemory workspace;
    std::list<ShapeContext> contexts;  // the one that ran last at the front

    Resources(const Layout& layout, bool shared, std::list<ShapeContext> first, std::size_t workspace_size)
        : inputs(layout.size, shared),
          outputs(first.front().outputs().size, shared),
          workspace(workspace_size > 0 ? DeviceMemory(workspace_size) : DeviceMemory()),
          contexts(std::move(first)) {
        contexts.front().bind(layout, inputs, outputs, workspace.get());
    }
    Resources(const Resources&) = delete;
    Resources& operator=(const Resources&) = delete;
    ~Resources() {
        try {
            stream.synchronize();
        } catch (const CudaError&) {
            // What a failed device was doing it does no more.
        }
    }
};

TensorRtContext::TensorRtContext(OpenEngine& engine, int device, const EngineOptions& options)
    : engine_(engine),
      device_(device),
      records_(options.cuda_graphs && !OpenEngine::records_itself()),
      input_layout_(engine.inputs(), largest_shapes(engine)),
      shapes_(largest_shapes(engine)),
      on_device_(shapes_.size()) {
    std::list<ShapeContext> first;
    first.emplace_back(engine, shapes_, records_);
    resources_ =
        std::make_unique<Resources>(input_layout_, options.zero_copy, std::move(first), engine.workspace_size());
}

TensorRtContext::~TensorRtContext() {
    std::optional<CurrentDevice> on;
    try {
        on.emplace(device_);
    } catch (const CudaError&) {
        // A lost device cannot be made current, and need not be.
    }
    resources_.reset();
}

void TensorRtContext::check_shape(std::size_t index, const Shape& shape) const {
    const InputRange& range = engine_.ranges()[index];
    if (!range.takes(shape)) {
        throw InputError("the input " + repr(engine_.inputs()[index].name) + " has the shape " + tuple(shape) +
                         ": the engine takes " + tuple(range.smallest) + " to " + tuple(range.largest) +
                         "; feed less at once, or build it with a larger --max-batch");
    }
}

MutableTensorView TensorRtContext::stage(std::size_t index, const Shape& shape) {
    check_shape(index, shape);
    shapes_[index] = shape;
    on_device_[index] = nullptr;
    return {resources_->inputs.host() + input_layout_.places[index].offset, engine_.inputs()[index].type, shape,
            Memory::Host};
}

void TensorRtContext::bind(std::size_t index, const TensorView& tensor) {
    if (tensor.memory == Memory::Host) {
        const auto staged = stage(index, tensor.shape);
        std::memcpy(staged.data, tensor.data, staged.byte_count());
        return;
    }
    check_shape(index, tensor.shape);
    std::optional<int> found;
    try {
        const CurrentDevice on(device_);
        found = cuda_device_of(tensor.data);
    } catch (const CudaError& e) {
        throw_run_error(e);
    }
    if (found != device_) {
        const std::string where = found ? "is on cuda:" + std::to_string(*found) : "is not in a GPU's memory";
        throw InputError("the input " + repr(engine_.inputs()[index].name) + " " + where +
                         ", the network on cuda:" + std::to_string(device_) + ": move it there");
    }
    shapes_[index] = tensor.shape;
    on_device_[index] = tensor.data;
}

std::vector<TensorView> TensorRtContext::run() {
    try {
        const CurrentDevice on(device_);
        try {
            return infer();
        } catch (...) {
            wait_after_failure();
            throw;
        }
    } catch (const CudaError& e) {
        throw_run_error(e);
    }
}

/// Whatever was in flight is waited for: the caller's memory may go away after this. A lost device is noticed by it,
/// also where the library said only that it failed.
void TensorRtContext::wait_after_failure() {
    try {
        resources_->stream.synchronize();
    } catch (const CudaError& e) {
        if (e.lost()) {
            throw;
        }
    }
}

std::vector<TensorView> TensorRtContext::infer() {
    ShapeContext& context = context_for_shapes();
    send_inputs();
    const CudaStream& stream = resources_->stream;
    const TransferBuffer& outputs = resources_->outputs;
    context.launch(stream);
    if (!outputs.is_shared()) {
        stream.copy(outputs.host(), outputs.device(), context.outputs().size, cudaMemcpyDeviceToHost);
    }
    stream.synchronize();
    std::vector<TensorView> views;
    for (std::size_t i = 0; i < engine_.outputs().size(); ++i) {
        const Place& place = context.outputs().places[i];
        views.emplace_back(outputs.host() + place.offset, engine_.outputs()[i].type, place.shape);
    }
    return views;
}

void TensorRtContext::send_inputs() {
    const CudaStream& stream = resources_->stream;
    const TransferBuffer& buffer = resources_->inputs;
    bool waits = std::any_of(on_device_.begin(), on_device_.end(), [](const void* data) { return data != nullptr; });
    for (std::size_t i = 0; i < shapes_.size(); ++i) {
        const std::size_t offset = input_layout_.places[i].offset;
        const std::size_t size = element_count(shapes_[i]) * element_size(engine_.inputs()[i].type);
        if (on_device_[i] != nullptr) {
            if (std::exchange(waits, false)) {
                stream.wait_for_default_stream();
            }
            stream.copy(buffer.device() + offset, on_device_[i], size, cudaMemcpyDefault);
        } else if (!buffer.is_shared()) {
            stream.copy(buffer.device() + offset, buffer.host() + offset, size, cudaMemcpyHostToDevice);
        }
    }
}

ShapeContext& TensorRtContext::context_for_shapes() {
    auto& contexts = resources_->contexts;
    const auto known = std::find_if(contexts.begin(), contexts.end(),
                                    [this](const ShapeContext& context) { return context.shapes() == shapes_; });
    if (known != contexts.end()) {
        contexts.splice(contexts.begin(), contexts, known);
        return contexts.front();
    }
    while (contexts.size() >= kMostShapes) {
        contexts.pop_back();
    }
    std::list<ShapeContext> made;
    made.emplace_back(engine_, shapes_, records_);
    const std::size_t needed = made.front().outputs().size;
    if (needed > resources_->outputs.size()) {
        throw BackendError("the outputs for " + tuples(shapes_) + " take " + std::to_string(needed) +
                           " bytes, those of the largest input " + std::to_string(resources_->outputs.size()));
    }
    made.front().bind(input_layout_, resources_->inputs, resources_->outputs, resources_->workspace.get());
    contexts.splice(contexts.begin(), made);
    return contexts.front();
}

}  // namespace holocron::detail
