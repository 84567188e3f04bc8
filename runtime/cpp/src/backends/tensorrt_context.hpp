/// \file
/// One stream with its buffers, and an execution context for each shape that it has seen.
///
/// A CUDA graph holds the addresses, the shapes and the state of the context that it was recorded from, and changing
/// that context afterwards makes replaying it undefined. So every shape has a context of its own, which is never
/// changed; they share the stream, the buffers and the memory for activations, since they run one after the other.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "backends/backend.hpp"
#include "backends/cuda.hpp"
#include "backends/tensorrt_engine.hpp"

namespace holocron::detail {

/// Where a tensor lies in a buffer.
struct Place {
    Shape shape;
    std::size_t offset = 0;  ///< in bytes
    std::size_t size = 0;    ///< in bytes
};

/// Tensors one after the other, each where TensorRT can use it.
struct Layout {
    std::vector<Place> places;
    std::size_t size = 0;  ///< bytes that all take

    Layout(const std::vector<TensorSpec>& specs, const std::vector<Shape>& shapes);
};

/// Page-locked host memory with device memory of the same size, or one memory that both see.
class TransferBuffer {
 public:
    /// \param shared whether both are the same memory, so that nothing is copied
    /// \throws CudaError if there is not enough
    TransferBuffer(std::size_t size, bool shared);

    [[nodiscard]] std::byte* host() const noexcept { return static_cast<std::byte*>(host_.get()); }
    [[nodiscard]] std::byte* device() const noexcept { return address_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] bool is_shared() const noexcept { return device_.get() == nullptr; }

 private:
    std::size_t size_;
    PinnedMemory host_;
    DeviceMemory device_;
    std::byte* address_;
};

/// An execution context for one set of input shapes, and what was recorded of it.
class ShapeContext {
 public:
    /// \param engine what it executes
    /// \param shapes of each input
    /// \param records whether to record the second run and replay it from then on
    /// \throws BackendError if the engine does not take the shapes
    ShapeContext(OpenEngine& engine, std::vector<Shape> shapes, bool records);

    [[nodiscard]] const std::vector<Shape>& shapes() const noexcept { return shapes_; }
    /// Of the outputs in their buffer.
    [[nodiscard]] const Layout& outputs() const noexcept { return *outputs_; }

    /// Say where everything is, once. \throws BackendError if the engine refuses an address
    void bind(const Layout& input_layout, const TransferBuffer& inputs, const TransferBuffer& outputs, void* workspace);

    /// Put a run into the stream: the first one as it is, so that the context has settled, then as recorded.
    ///
    /// \throws BackendError if the library or the device refuses
    void launch(const CudaStream& stream);

 private:
    [[nodiscard]] std::optional<CudaGraph> record(const CudaStream& stream);

    OpenEngine& engine_;
    std::vector<Shape> shapes_;
    bool records_;
    bool has_run_ = false;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::optional<Layout> outputs_;
    std::optional<CudaGraph> graph_;  // goes before the context that it was recorded from
};

/// All that one inference at a time takes: a stream, buffers, contexts.
class TensorRtContext final : public Context {
 public:
    /// \param engine what is executed; it lives as long
    /// \param device number of its GPU, which is current here
    /// \throws BackendError if there is not enough memory; nothing is kept then
    TensorRtContext(OpenEngine& engine, int device, const EngineOptions& options);
    TensorRtContext(const TensorRtContext&) = delete;
    TensorRtContext& operator=(const TensorRtContext&) = delete;
    ~TensorRtContext() override;

    MutableTensorView stage(std::size_t index, const Shape& shape) override;
    void bind(std::size_t index, const TensorView& tensor) override;
    std::vector<TensorView> run() override;

 private:
    struct Resources;

    void check_shape(std::size_t index, const Shape& shape) const;
    [[nodiscard]] ShapeContext& context_for_shapes();
    void send_inputs();
    [[nodiscard]] std::vector<TensorView> infer();
    void wait_after_failure();

    OpenEngine& engine_;
    int device_;
    bool records_;
    Layout input_layout_;  // of the largest shapes: a place does not depend on what the other inputs are
    std::vector<Shape> shapes_;
    std::vector<const void*> on_device_;  // inputs of the next run that are in the caller's device memory
    std::unique_ptr<Resources> resources_;
};

}  // namespace holocron::detail
