/// \file
/// Opening a bundle, and the model that it becomes.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "holocron/export.h"
#include "holocron/frame.hpp"
#include "holocron/results.hpp"
#include "holocron/tensor.hpp"

namespace holocron {

/// How a TensorRT engine is run.
struct EngineOptions {
    int contexts = 4;         ///< threads that run it at once, 1 to 64; others wait
    bool cuda_graphs = true;  ///< whether inference is recorded at the second run of a shape and replayed from then on
    bool zero_copy = false;   ///< work on the host's memory instead of copying it, where the two are the same (Jetson)
};

/// What `load` is asked for.
struct LoadOptions {
    /// `"tensorrt"`, `"tensorrt_rtx"`, `"onnxruntime-cuda"`, `"openvino"` or `"onnxruntime"`; empty for the best that
    /// opens the network.
    std::string backend;
    /// `"fp32"`, `"fp16"`, `"int8"` (of the scheme that suits the backend), `"int8.cpu"` or `"int8.trt"`; empty for the
    /// backend's best.
    std::string precision;
    /// A GPU's number or `"cuda:1"`, `"cpu"`, or one of OpenVINO's devices, e.g. `"gpu"`; empty for the first.
    std::string device;
    /// Processor threads of one call, 1 to 1024; 0 for the physical cores that this process may use.
    int threads = 0;
    /// Calls that are to run at the same time without waiting for each other, 1 to 1024, each on so many threads. Any
    /// number of threads may call the model nonetheless.
    int concurrency = 1;
    /// How an engine is run.
    EngineOptions engine;
};

/// What a model's outputs mean.
enum class Task { Classification, Detection, Segmentation };

/// Name of a task as it stands in a manifest, e.g. `"classification"`.
[[nodiscard]] HOLOCRON_API std::string_view to_string(Task task) noexcept;

/// A network, opened from a bundle by `load`. Copies are the same model. Several threads may call it at once.
///
/// Every method that runs the network throws
///  - ImageError if a frame cannot be taken,
///  - BackendError if the network fails, answers with NaN, or the model is closed,
///  - BundleError if the network's answer is not what the manifest says,
///  - ArgumentError if the model has another task.
class HOLOCRON_API Model {
 public:
    Model(const Model&) = default;  // and no move: a model that was moved from is a model still
    Model& operator=(const Model&) = default;

    /// The model's name, e.g. `"repvgg_a0"`.
    [[nodiscard]] const std::string& name() const noexcept;
    [[nodiscard]] Task task() const noexcept;
    /// One name a class.
    [[nodiscard]] const std::vector<std::string>& labels() const noexcept;
    /// The file that was opened, relative to the bundle; empty for a lone ONNX file.
    [[nodiscard]] const std::string& artefact() const noexcept;
    /// `"fp32"`, `"fp16"`, `"int8.cpu"` or `"int8.trt"`; `"unknown"` for an ONNX file that does not say.
    [[nodiscard]] const std::string& precision() const noexcept;
    /// What runs it, e.g. `"openvino"`.
    [[nodiscard]] const std::string& backend() const noexcept;
    /// Where, e.g. `"cpu"` or `"cuda:0"`.
    [[nodiscard]] const std::string& device() const noexcept;
    /// Processor threads of one call.
    [[nodiscard]] int threads() const noexcept;
    /// What the network takes, as it says itself.
    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept;
    /// What the network gives, as it says itself.
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept;
    /// Height and width in pixels that frames are resized to.
    [[nodiscard]] Size input_size() const noexcept;

    /// Classify a frame. \throws see the class
    [[nodiscard]] Classification classify(const Frame& frame) const;
    /// Classify several frames, any number of them. \throws see the class
    [[nodiscard]] std::vector<Classification> classify(const std::vector<Frame>& frames) const;
    /// Find objects in a frame. \throws see the class; BundleError for a network that gives its raw heads
    [[nodiscard]] Detections detect(const Frame& frame) const;
    [[nodiscard]] std::vector<Detections> detect(const std::vector<Frame>& frames) const;
    /// The class of each pixel of a frame. \throws see the class
    [[nodiscard]] Segmentation segment(const Frame& frame) const;
    [[nodiscard]] std::vector<Segmentation> segment(const std::vector<Frame>& frames) const;

    /// What the network itself gives for one frame or several, before anything is made of it.
    ///
    /// \return the outputs by name, each with an entry a frame in its first dimension; nothing for no frames
    /// \throws see the class
    [[nodiscard]] Tensors run(const Frame& frame) const;
    [[nodiscard]] Tensors run(const std::vector<Frame>& frames) const;

    /// Run the network once on tensors.
    ///
    /// \param inputs every input of the network by its name. Memory on the GPU is taken where the backend runs there;
    ///        its values are not checked
    /// \return the outputs by name
    /// \throws InputError if a name, element type, shape or value is not what the network takes
    /// \throws BackendError if the network fails, or the model is closed
    [[nodiscard]] Tensors run(const TensorViews& inputs) const;

    /// What the network is fed for frames: `run` accepts it.
    ///
    /// \throws ImageError if there are none, or one cannot be taken
    [[nodiscard]] Tensors feeds(const std::vector<Frame>& frames) const;

    /// Run the network twice on a black frame, so that the first real one does not wait for what is done once: memory
    /// is allocated, kernels are loaded, CUDA graphs recorded.
    ///
    /// \param frame_size of the frames that will come, where the network takes frames of several sizes; 0 × 0 for the
    ///        largest. Other networks take one size, whatever the frames have
    /// \throws see the class
    void warm_up(Size frame_size = {}) const;

    /// Release the network; calling it twice is allowed. Calls that are running in other threads finish, later ones are
    /// a BackendError.
    void close() const;

    class HOLOCRON_LOCAL Impl;
    /// For `load`.
    explicit Model(std::shared_ptr<const Impl> impl) noexcept;

 private:
    std::shared_ptr<const Impl> impl_;
};

/// Open a bundle with the best backend and precision that there are here, or with those asked for. Several threads may
/// call it at once.
///
/// \param path a bundle's folder, or an ONNX file out of one
/// \param options what is asked for
/// \throws BundleError if there is no bundle, or a file of it is missing, cut off, changed, or of an unknown version
/// \throws BackendError if the precision, backend or device does not exist here, with those that do
/// \throws ArgumentError if a number is out of range
[[nodiscard]] HOLOCRON_API Model load(const std::filesystem::path& path, const LoadOptions& options = {});

/// The backends that can be used here, those tried first by `load` first.
[[nodiscard]] HOLOCRON_API std::vector<std::string> available_backends();

/// Version of the library, e.g. `"0.1.0"`.
[[nodiscard]] HOLOCRON_API const char* version() noexcept;

}  // namespace holocron
