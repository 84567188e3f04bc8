// Times `classify` beside a bare request of OpenVINO's on the same tensor, for benchmarks/cpp_classify.py: flat
// functions, called through ctypes. Each returns null or what went wrong; such a text lives until the thread's next
// call.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <holocron/runtime.hpp>
#include <memory>
#include <openvino/openvino.hpp>
#include <vector>

#include "shim.hpp"

namespace {

struct Timer {
    Timer(const std::filesystem::path& bundle, const holocron::LoadOptions& options, const holocron::Frame& image)
        : model(holocron::load(bundle, options)), frame(image), feeds(model.feeds({frame})) {
        // As OpenVINO's documentation has it, with the library's settings.
        ov::Core core;
        auto network = core.compile_model(
            (bundle / model.artefact()).string(), "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
            ov::hint::inference_precision(ov::element::f32), ov::inference_num_threads(options.threads));
        request = network.create_infer_request();
        holocron::Tensor& input = feeds.begin()->second;
        request.set_input_tensor(
            ov::Tensor(ov::element::f32, ov::Shape(input.shape().begin(), input.shape().end()), input.data()));
        for (auto& [name, tensor] : feeds) {
            views.emplace(name, tensor.view());
        }
    }

    holocron::Model model;
    holocron::Frame frame;
    holocron::Tensors feeds;  // what the network is fed for the frame
    holocron::TensorViews views;
    ov::InferRequest request;
};

// Seconds of a call: the mean of some that follow each other.
template <typename Call>
double seconds_of(int calls, const Call& call) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) {
        call();
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return took.count() / calls;
}

}  // namespace

SHIM const char* timer_open(const char* bundle, int threads, const std::uint8_t* rgb, int height, int width,
                            void** timer) {
    return guarded([&] {
        holocron::LoadOptions options;
        options.backend = "openvino";
        options.precision = "int8.cpu";
        options.threads = threads;
        const holocron::Frame frame{rgb, width, height, 0, holocron::Format::RGB};
        *timer = std::make_unique<Timer>(std::filesystem::u8path(bundle), options, frame).release();
    });
}

SHIM void timer_free(void* timer) { const std::unique_ptr<Timer> owner(static_cast<Timer*>(timer)); }

// The logits that `classify` gives: room for `count`.
SHIM const char* timer_logits(const void* timer, float* logits, std::size_t count) {
    return guarded([&] {
        const auto& self = *static_cast<const Timer*>(timer);
        const auto answer = self.model.classify(self.frame);
        if (answer.logits.size() != count) {
            throw holocron::ArgumentError("there are " + std::to_string(answer.logits.size()) + " logits");
        }
        std::copy(answer.logits.begin(), answer.logits.end(), logits);
    });
}

// The frame, with all that becomes of it.
SHIM const char* timer_classify(const void* timer, int calls, double* seconds) {
    return guarded([&] {
        const auto& self = *static_cast<const Timer*>(timer);
        *seconds = seconds_of(calls, [&] { static_cast<void>(self.model.classify(self.frame)); });
    });
}

// The library on the tensor: neither preprocessing nor ranking.
SHIM const char* timer_run(const void* timer, int calls, double* seconds) {
    return guarded([&] {
        const auto& self = *static_cast<const Timer*>(timer);
        *seconds = seconds_of(calls, [&] { static_cast<void>(self.model.run(self.views)); });
    });
}

// OpenVINO on the tensor, without the library.
SHIM const char* timer_request(void* timer, int calls, double* seconds) {
    return guarded([&] {
        auto& request = static_cast<Timer*>(timer)->request;
        *seconds = seconds_of(calls, [&] { request.infer(); });
    });
}
