/// \file
/// TensorRT and TensorRT-RTX engines on an NVIDIA GPU. One code path for both.
#include <utility>

#include "backends/backend.hpp"
#include "backends/cuda.hpp"
#include "backends/tensorrt_context.hpp"
#include "backends/tensorrt_engine.hpp"
#include "backends/tensorrt_library.hpp"

namespace holocron::detail {

namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20;

class TensorRtExecutable final : public Executable {
 public:
    TensorRtExecutable(const Network& network, int index, const EngineOptions& options)
        : index_(index), device_("cuda:" + std::to_string(index)), options_(options) {
        const CurrentDevice on(index_);
        if (options_.zero_copy && !cuda_shares_memory(index_)) {
            throw BackendError("zero_copy is for a GPU that shares the processor's memory, as on a Jetson, which " +
                               device_ + " does not: leave it out");
        }
        engine_ = std::make_unique<OpenEngine>(network, options_.cuda_graphs);
    }

    TensorRtExecutable(const TensorRtExecutable&) = delete;
    TensorRtExecutable& operator=(const TensorRtExecutable&) = delete;

    ~TensorRtExecutable() override {
        try {
            const CurrentDevice on(index_);
            engine_.reset();
        } catch (const CudaError&) {
            engine_.reset();  // a lost device cannot be made current, and need not be
        }
    }

    [[nodiscard]] const std::vector<TensorSpec>& inputs() const noexcept override { return engine_->inputs(); }
    [[nodiscard]] const std::vector<TensorSpec>& outputs() const noexcept override { return engine_->outputs(); }
    [[nodiscard]] const std::string& device() const noexcept override { return device_; }
    [[nodiscard]] bool takes(Memory /*memory*/) const noexcept override { return true; }
    [[nodiscard]] std::size_t context_limit() const noexcept override {
        return static_cast<std::size_t>(options_.contexts);
    }

    [[nodiscard]] std::unique_ptr<Context> create_context() override {
        try {
            const CurrentDevice on(index_);
            try {
                return std::make_unique<TensorRtContext>(*engine_, index_, options_);
            } catch (const CudaError& e) {
                if (e.out_of_memory()) {
                    throw OutOfDeviceMemory(memory_problem());
                }
                throw;
            }
        } catch (const CudaError& e) {
            if (e.lost()) {
                const std::string reason = e.what();
                throw DeviceLost(reason + "; the device is lost to this process: restart the program", reason);
            }
            throw OutOfDeviceMemory(e.what());
        } catch (const OutOfDeviceMemory&) {
            throw;
        } catch (const BackendError& e) {
            // The library does not say why it gives no context. Where others run the engine, memory is what is missing.
            throw OutOfDeviceMemory(e.what());
        }
    }

 private:
    [[nodiscard]] std::string memory_problem() const {
        return "there is not enough memory for the engine: it needs " +
               std::to_string(engine_->workspace_size() / kMebibyte) +
               " MiB for activations besides its buffers, and " + std::to_string(cuda_free_memory() / kMebibyte) +
               " MiB are free on " + device_ +
               "; end other programs on the GPU, or build the engine with a smaller --max-batch";
    }

    int index_;
    std::string device_;
    EngineOptions options_;
    std::unique_ptr<OpenEngine> engine_;
};

std::string problem() {
    if (cuda_device_count() > 0) {
        return library_problem();
    }
    if (cuda_driver_version() > 0 && cuda_driver_version() / 1000 < CUDART_VERSION / 1000) {
        return std::string(kLibrary) + " needs an NVIDIA driver for CUDA " + std::to_string(CUDART_VERSION / 1000) +
               ", and the one here is for CUDA " + std::to_string(cuda_driver_version() / 1000) + ": update it";
    }
    return std::string(kLibrary) + " needs an NVIDIA GPU and its driver, and none was found";
}

std::shared_ptr<Executable> open(const Network& network, const SessionOptions& options) {
    return std::make_shared<TensorRtExecutable>(network, cuda_device_index(options.device), options.engine);
}

EngineHost host(const std::string& device) { return {library_version(), cuda_capability(cuda_device_index(device))}; }

}  // namespace

#ifdef HOLOCRON_HAS_TENSORRT_RTX
std::string tensorrt_rtx_problem() { return problem(); }
std::shared_ptr<Executable> open_tensorrt_rtx(const Network& network, const SessionOptions& options) {
    return open(network, options);
}
EngineHost tensorrt_rtx_host(const std::string& device) { return host(device); }
#else
std::string tensorrt_problem() { return problem(); }
std::shared_ptr<Executable> open_tensorrt(const Network& network, const SessionOptions& options) {
    return open(network, options);
}
EngineHost tensorrt_host(const std::string& device) { return host(device); }
#endif

}  // namespace holocron::detail
