/// \file
/// Engines on the fakes, and what every test makes sure of at its end.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "context_pool.hpp"
#include "fake_cuda.hpp"
#include "fake_tensorrt.hpp"

namespace holocron::tests {

#ifdef HOLOCRON_HAS_TENSORRT_RTX
constexpr bool kIsRtx = true;
const std::string kLibraryName = "tensorrt_rtx";
const std::string kVersion = "TensorRT-RTX 1.3.0";
inline std::string problem() { return detail::tensorrt_rtx_problem(); }
inline detail::EngineHost host(const std::string& device) { return detail::tensorrt_rtx_host(device); }
inline std::shared_ptr<detail::Executable> open(const detail::Network& network,
                                                const detail::SessionOptions& options = {}) {
    return detail::open_tensorrt_rtx(network, options);
}
#else
constexpr bool kIsRtx = false;
const std::string kLibraryName = "tensorrt";
const std::string kVersion = "TensorRT 10.3.0";
inline std::string problem() { return detail::tensorrt_problem(); }
inline detail::EngineHost host(const std::string& device) { return detail::tensorrt_host(device); }
inline std::shared_ptr<detail::Executable> open(const detail::Network& network,
                                                const detail::SessionOptions& options = {}) {
    return detail::open_tensorrt(network, options);
}
#endif

/// Fresh fakes; at its end no rule may have been broken and nothing may be left.
struct Fakes {
    Fakes() {
        fake::cuda().reset();
        fake::library().reset();
    }
    Fakes(const Fakes&) = delete;
    Fakes& operator=(const Fakes&) = delete;
    ~Fakes() {
        for (const auto& violation : fake::cuda().violations) {
            FAIL_CHECK(violation);
        }
        for (const auto& leak : fake::cuda().leaks()) {
            FAIL_CHECK("left: " << leak);
        }
        for (const auto& [name, count] : fake::library().alive) {
            CHECK_MESSAGE(count == 0, "left: " << name);
        }
    }
};

inline detail::Network network_of(const fake::Plan& plan) {
    detail::Network network;
    network.file = "bundle/model.engine";
    network.variant = "fp16";
    network.plan = plan.serialize();
    return network;
}

inline detail::SessionOptions options_of(const EngineOptions& engine) {
    detail::SessionOptions options;
    options.engine = engine;
    return options;
}

/// A batch of images, whose bytes depend on the seed.
inline Tensor images(std::int64_t batch, int seed) {
    Tensor tensor(ElementType::Float32, {batch, 3, 2, 2});
    auto* bytes = static_cast<unsigned char*>(tensor.data());
    for (std::size_t i = 0; i < tensor.byte_count(); ++i) {
        bytes[i] = static_cast<unsigned char>(static_cast<std::size_t>(seed) * 31 + i * 7);
    }
    return tensor;
}

/// What the fake engine gives for them.
inline std::vector<float> expected(const Tensor& input, std::size_t outputs = 5) {
    const auto* bytes = static_cast<const unsigned char*>(input.data());
    const auto batch = static_cast<std::size_t>(input.shape().front());
    const std::size_t size = input.byte_count() / batch;
    std::vector<float> values;
    for (std::size_t entry = 0; entry < batch; ++entry) {
        std::uint32_t sum = 0;
        for (std::size_t i = 0; i < size; ++i) {
            sum += bytes[entry * size + i];
        }
        for (std::size_t i = 0; i < outputs; ++i) {
            values.push_back(static_cast<float>(sum + i));
        }
    }
    return values;
}

inline std::vector<float> values_of(const TensorView& view) {
    const auto* values = view.elements<float>();
    return {values, values + element_count(view.shape)};
}

/// One run in a context of a pool.
inline std::vector<float> run(detail::ContextPool& pool, const TensorView& input) {
    return pool.with_context([&](detail::Context& context) {
        context.bind(0, input);
        return values_of(context.run().at(0));
    });
}

/// What a call throws; empty if it throws nothing.
template <typename Error, typename Call>
std::string message_of(Call&& call) {
    try {
        call();
    } catch (const Error& e) {
        return e.what();
    }
    return {};
}

}  // namespace holocron::tests
