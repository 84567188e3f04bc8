/// \file
/// Models of a backend that computes what a test says.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle_files.hpp"
#include "fake_backend.hpp"
#include "holocron/runtime.hpp"
#include "model_impl.hpp"

namespace holocron::tests {

/// Logits that are the means of the channels.
inline std::vector<Tensor> mean_colour(const std::vector<Tensor>& inputs) {
    const auto& shape = inputs[0].shape();
    const auto plane = static_cast<std::size_t>(shape[2] * shape[3]);
    Tensor logits(ElementType::Float32, {shape[0], 3});
    for (std::size_t i = 0; i < logits.size(); ++i) {
        const float* values = inputs[0].elements<float>() + i * plane;
        float sum = 0;
        for (std::size_t p = 0; p < plane; ++p) {
            sum += values[p];
        }
        logits.elements<float>()[i] = sum / static_cast<float>(plane);
    }
    return {logits};
}

inline std::vector<TensorSpec> image_input(Dimension batch = std::string("batch")) {
    return {{"input", ElementType::Float32, {std::move(batch), std::int64_t{3}, std::int64_t{8}, std::int64_t{8}}}};
}

inline std::vector<TensorSpec> logits_output() {
    return {{"logits", ElementType::Float32, {std::string("batch"), std::int64_t{3}}}};
}

inline std::shared_ptr<FakeExecutable> fake_network(Dimension batch = std::string("batch")) {
    return std::make_shared<FakeExecutable>(image_input(std::move(batch)), logits_output(), mean_colour);
}

inline Model make_model(const nlohmann::json& manifest, const std::shared_ptr<FakeExecutable>& network,
                        std::optional<int> max_batch = std::nullopt) {
    return Model(std::make_shared<const Model::Impl>(detail::parse_manifest(manifest.dump()), network,
                                                     Model::Impl::Opened{"fake", "fp32", "f", max_batch, 1}));
}

inline Model make_model(const std::shared_ptr<FakeExecutable>& network) {
    return make_model(mean_colour_manifest(8), network);
}

/// An image of one colour.
struct Picture {
    Picture(std::uint8_t r, std::uint8_t g, std::uint8_t b, int w = 8, int h = 8) : width(w), height(h) {
        for (int i = 0; i < w * h; ++i) {
            pixels.insert(pixels.end(), {r, g, b});
        }
    }
    [[nodiscard]] Frame frame() const { return {pixels.data(), width, height, 0, Format::RGB}; }

    int width;
    int height;
    std::vector<std::uint8_t> pixels;
};

template <typename E, typename Action>
std::string error_of(Action action) {
    try {
        action();
    } catch (const E& e) {
        return e.what();
    }
    return "";
}

inline Tensor tensor_of(Shape shape, std::initializer_list<float> values) {
    Tensor tensor(ElementType::Float32, std::move(shape));
    std::copy(values.begin(), values.end(), tensor.elements<float>());
    return tensor;
}

inline Tensor tensor_of(Shape shape, std::initializer_list<std::int32_t> values) {
    Tensor tensor(ElementType::Int32, std::move(shape));
    std::copy(values.begin(), values.end(), tensor.elements<std::int32_t>());
    return tensor;
}

}  // namespace holocron::tests
