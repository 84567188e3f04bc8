/// \file
/// What a model is made of.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "context_pool.hpp"
#include "feeds.hpp"
#include "manifest.hpp"
#include "tasks/tasks.hpp"

namespace holocron {

/// A network that was opened, what its manifest says, and what turns frames into its inputs.
class Model::Impl {
 public:
    /// What was opened, and how.
    struct Opened {
        std::string backend;
        std::string precision;
        std::string artefact;          ///< empty for a lone ONNX file
        std::optional<int> max_batch;  ///< of an engine; an ONNX file takes any number
        int threads = 1;
    };

    /// \throws BundleError if the network is not the one that the manifest describes
    /// \throws BackendError if there is not enough memory for a context
    Impl(detail::Manifest manifest, std::shared_ptr<detail::Executable> network, Opened opened);

    [[nodiscard]] const detail::Manifest& manifest() const noexcept { return manifest_; }
    [[nodiscard]] const Opened& opened() const noexcept { return opened_; }
    [[nodiscard]] const std::string& device() const noexcept { return device_; }
    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept { return inputs_; }
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept { return outputs_; }

    /// Takes the outputs for some of the frames, and the sizes of those. They are valid during the call.
    using Use = std::function<void(const detail::Outputs&, const detail::FrameSizes&)>;

    /// Run the network on frames, as many at once as it takes, and hand out what it gives for them in their order.
    ///
    /// \param together all at once where the network takes so many, or in parts that keep outputs small
    void run(const std::vector<Frame>& frames, bool together, const Use& use) const;

    [[nodiscard]] Tensors run(const TensorViews& inputs) const;
    [[nodiscard]] Tensors feeds(const std::vector<Frame>& frames) const;
    void close() const { pool_.close(); }

    /// \throws ArgumentError if the model does something else
    void require(Task task, const char* method) const;

 private:
    void run_part(const detail::FrameRange& frames, std::size_t batch, const Use& use) const;
    [[nodiscard]] detail::Outputs ordered(const std::vector<TensorView>& outputs, std::size_t filled) const;
    void check_finite(const std::vector<TensorView>& outputs) const;

    detail::Manifest manifest_;
    Opened opened_;
    std::string device_;
    bool takes_device_memory_;
    std::vector<TensorSpec> inputs_;
    std::vector<TensorSpec> outputs_;
    std::shared_ptr<detail::Executable> network_;
    detail::Feeder feeder_;
    std::optional<std::int64_t> fixed_batch_;
    std::size_t chunk_;
    std::vector<std::size_t> input_places_;   // of the manifest's inputs among the network's
    std::vector<std::size_t> output_places_;  // of the manifest's outputs among the network's
    mutable detail::ContextPool pool_;
};

}  // namespace holocron
