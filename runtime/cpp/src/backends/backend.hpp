/// \file
/// What every backend gives: an executable, opened once, that hands out contexts, one to a thread at a time.
///
/// A backend is one or more files that define the functions of `BackendEntry`, compiled where the library's headers are
/// found, and a line in registry.cpp.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "holocron/errors.hpp"
#include "holocron/model.hpp"
#include "holocron/tensor.hpp"
#include "manifest.hpp"
#include "text.hpp"

namespace holocron::detail {

/// The GPU is lost to this process: the context pool closes, and every later call is refused.
class DeviceLost : public BackendError {
 public:
    /// \param message for the call that noticed it
    /// \param reason what the device said, for the calls that come later
    DeviceLost(const std::string& message, std::string reason) : BackendError(message), reason_(std::move(reason)) {}
    [[nodiscard]] const std::string& reason() const noexcept { return reason_; }

 private:
    std::string reason_;
};

/// There is no memory for one more context. The pool makes do with those that it has, if it has any.
class OutOfDeviceMemory : public BackendError {
 public:
    using BackendError::BackendError;
};

/// One execution of a network at a time: its buffers, its stream. Used by one thread at a time, by different threads
/// one after the other, so that a context on a GPU makes its device current itself.
///
/// A run is: `stage` or `bind` each input, then `run`. The pool destroys a context that threw, but for an InputError:
/// that leaves it as it was.
class Context {
 public:
    Context() = default;
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;
    virtual ~Context() = default;

    /// Host memory of the context's own for an input of the next run, for the caller to fill: pinned where that is
    /// faster. Valid until the context is destroyed or the input is staged or bound again.
    ///
    /// \param index of the input in `Executable::inputs`
    /// \param shape fits the input
    /// \throws BackendError if there is not enough memory; InputError if the shape is beyond an engine's profile
    virtual MutableTensorView stage(std::size_t index, const Shape& shape) = 0;

    /// Memory of the caller's for an input of the next run, valid until that returns; copied only where it must be.
    ///
    /// \param index of the input in `Executable::inputs`
    /// \param tensor fits the input; in memory that `Executable::takes` accepts
    /// \throws as `stage`
    virtual void bind(std::size_t index, const TensorView& tensor) = 0;

    /// Run the network and wait for it.
    ///
    /// \return the outputs in the order of `Executable::outputs`, in host memory of the context's, valid until its next
    ///         `stage`, `bind` or `run`
    /// \throws BackendError if it fails
    virtual std::vector<TensorView> run() = 0;
};

/// A network opened by one backend on one device. Threads share it; it outlives its contexts.
class Executable {
 public:
    Executable() = default;
    Executable(const Executable&) = delete;
    Executable& operator=(const Executable&) = delete;
    virtual ~Executable() = default;

    /// The network's inputs, as the network says itself.
    [[nodiscard]] virtual const std::vector<TensorSpec>& inputs() const noexcept = 0;
    /// The network's outputs, as the network says itself.
    [[nodiscard]] virtual const std::vector<TensorSpec>& outputs() const noexcept = 0;
    /// Where it runs, in the backend's own words, e.g. `"cpu"` or `"cuda:0"`.
    [[nodiscard]] virtual const std::string& device() const noexcept = 0;
    /// Whether its contexts bind inputs that lie there.
    [[nodiscard]] virtual bool takes(Memory memory) const noexcept { return memory == Memory::Host; }
    /// How many contexts there may be at once; threads that find none wait. 0 for as many as are asked for.
    [[nodiscard]] virtual std::size_t context_limit() const noexcept { return 0; }

    /// A context. Called by several threads at once.
    ///
    /// \throws OutOfDeviceMemory, DeviceLost, BackendError
    [[nodiscard]] virtual std::unique_ptr<Context> create_context() = 0;
};

/// What a backend opens.
struct Network {
    std::filesystem::path file;  ///< an ONNX file, which the backend reads; for an engine what to call it in errors
    std::string variant;         ///< `"fp32"`, `"fp16"`, `"int8.cpu"`, `"int8.trt"`, `"unknown"`
    std::string plan;            ///< a serialized engine, whose hash was compared; empty for an ONNX file
    std::optional<EngineInfo> engine;  ///< what the manifest says of the engine
    std::string weights;               ///< the ONNX file that a stripped engine is refitted from; empty otherwise
    std::filesystem::path cache;       ///< where TensorRT-RTX may keep what it compiled for this GPU; empty: nowhere
};

/// How a backend is to open it.
struct SessionOptions {
    int threads = 1;      ///< processor threads of one call
    int concurrency = 1;  ///< calls that are to run at the same time
    std::string device;   ///< as in `LoadOptions`; empty for the first
    EngineOptions engine;
};

/// What a machine has of a library that opens engines.
struct EngineHost {
    std::string version;                            ///< of the library, e.g. `"10.3.0"`
    std::optional<std::string> compute_capability;  ///< of the GPU, e.g. `"8.7"`; nothing if the driver does not tell
};

/// One way to run a network: what registry.cpp knows of it.
struct BackendEntry {
    std::string_view name;                   ///< what `load` calls it
    bool gpu;                                ///< whether it needs an NVIDIA GPU
    std::string_view int8_scheme;            ///< the quantization scheme that it runs in INT8 arithmetic
    std::vector<std::string_view> variants;  ///< precisions from the best to the worst choice
    bool opens_engines;                      ///< engines, or ONNX files

    /// Why it cannot be used here, one sentence with the remedy; empty if it can. Null: it is not compiled in.
    std::string (*problem)();
    /// Open a network. \throws BackendError if there is no such device, or the library refuses the network
    std::shared_ptr<Executable> (*open)(const Network&, const SessionOptions&);
    /// What there is here of the library, for engines on that device; null for what opens ONNX files.
    EngineHost (*host)(const std::string& device);
};

/// Every backend that there can be, compiled in or not.
[[nodiscard]] const std::vector<BackendEntry>& backends();

/// A backend by name. \throws BackendError if there is none of that name
[[nodiscard]] const BackendEntry& backend_entry(std::string_view name);

/// Why a backend cannot be used here; empty if it can.
[[nodiscard]] std::string unavailable(const BackendEntry& backend);

/// Names of every backend, the one to try first at the front.
[[nodiscard]] std::vector<std::string_view> preferred_backends();

#ifdef HOLOCRON_HAS_OPENVINO
std::string openvino_problem();
std::shared_ptr<Executable> open_openvino(const Network& network, const SessionOptions& options);
#endif

#ifdef HOLOCRON_HAS_ONNXRUNTIME
std::string onnxruntime_problem();
std::shared_ptr<Executable> open_onnxruntime(const Network& network, const SessionOptions& options);
std::string onnxruntime_cuda_problem();
std::shared_ptr<Executable> open_onnxruntime_cuda(const Network& network, const SessionOptions& options);
#endif

#ifdef HOLOCRON_HAS_TENSORRT
std::string tensorrt_problem();
std::shared_ptr<Executable> open_tensorrt(const Network& network, const SessionOptions& options);
EngineHost tensorrt_host(const std::string& device);
#endif

#ifdef HOLOCRON_HAS_TENSORRT_RTX
std::string tensorrt_rtx_problem();
std::shared_ptr<Executable> open_tensorrt_rtx(const Network& network, const SessionOptions& options);
EngineHost tensorrt_rtx_host(const std::string& device);
#endif

}  // namespace holocron::detail
