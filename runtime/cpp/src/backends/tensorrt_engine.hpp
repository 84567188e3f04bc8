/// \file
/// A deserialized engine: what it takes and gives, and the execution contexts that are made of it.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "backends/engine_cache.hpp"
#include "holocron/tensor.hpp"

namespace holocron::detail {

/// The shapes that an engine's optimization profile has for one of its inputs.
struct InputRange {
    Shape smallest;
    Shape largest;

    /// Whether a shape lies in the profile.
    [[nodiscard]] bool takes(const Shape& shape) const;
};

/// An engine on a GPU. Making it, all that is asked of it and destroying it must happen with that GPU current.
class OpenEngine {
 public:
    /// \param network the serialized engine, which is executed, and what is known of it
    /// \param cuda_graphs whether inference is to be recorded and replayed
    /// \throws BackendError if the library refuses it, or it is of a kind that this backend does not run
    OpenEngine(const Network& network, bool cuda_graphs);
    OpenEngine(const OpenEngine&) = delete;
    OpenEngine& operator=(const OpenEngine&) = delete;
    /// Saves what was compiled for this GPU; the contexts must be gone.
    ~OpenEngine();

    /// In the engine's order.
    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept { return inputs_; }
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept { return outputs_; }
    /// In the order of `inputs`.
    [[nodiscard]] const std::vector<InputRange>& ranges() const noexcept { return ranges_; }
    /// Bytes of device memory that a context must be given; 0 if contexts have their own.
    [[nodiscard]] std::size_t workspace_size() const noexcept { return workspace_size_; }

    /// Whether the library records CUDA graphs by itself.
    [[nodiscard]] static constexpr bool records_itself() noexcept {
#ifdef HOLOCRON_HAS_TENSORRT_RTX
        return true;
#else
        return false;
#endif
    }

    /// A new execution context. Threads may call it at once. \throws BackendError if there is none, for want of memory
    /// say
    [[nodiscard]] std::unique_ptr<nvinfer1::IExecutionContext> create_context();

 private:
    void deserialize(const Network& network);
    void refit(const std::string& weights);
    void read_tensors();
    void read_tensor(const char* name);

    PairedFile cache_file_;
    std::mutex mutex_;  // of making contexts: TensorRT does not say that threads may make them at once
    // Destroyed from the last to the first, as TensorRT wants it.
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef HOLOCRON_HAS_TENSORRT_RTX
    void configure(bool cuda_graphs);
    void save_cache();

    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
#endif
    std::vector<TensorSpec> inputs_;
    std::vector<TensorSpec> outputs_;
    std::vector<InputRange> ranges_;
    std::size_t workspace_size_ = 0;
};

}  // namespace holocron::detail
