#include "tasks/tasks.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "convert.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

void check_score_output(const Manifest& manifest, std::size_t dimensions, const std::string& form) {
    const std::string task(to_string(manifest.task));
    if (manifest.outputs.size() != 1) {
        throw BundleError(manifest.name + ": " + task + " has one output " + form + ", this network has " +
                          std::to_string(manifest.outputs.size()) + "; export the model again");
    }
    const auto& shape = manifest.outputs[0].shape;
    const auto* classes = shape.size() == dimensions ? std::get_if<std::int64_t>(&shape[1]) : nullptr;
    const std::size_t labels = manifest.labels->size();
    const bool fits =
        shape.size() == dimensions && (classes == nullptr || *classes == static_cast<std::int64_t>(labels));
    if (!fits || labels == 0) {
        throw BundleError(manifest.name + ": " + std::to_string(labels) + " labels do not fit a network that answers " +
                          tuple(shape) + " where " + task + " has " + form + "; export the model again");
    }
}

std::size_t values_of_a_frame(const TensorView& view) {
    return std::accumulate(
        view.shape.begin() + 1, view.shape.end(), std::size_t{1},
        [](std::size_t product, std::int64_t extent) { return product * static_cast<std::size_t>(extent); });
}

}  // namespace

Outputs::Outputs(const Manifest& manifest, std::vector<TensorView> views)
    : manifest_(&manifest), views_(std::move(views)) {}

const TensorView* Outputs::find(std::string_view name) const {
    for (std::size_t i = 0; i < views_.size(); ++i) {
        if (manifest_->outputs[i].name == name) {
            return &views_[i];
        }
    }
    return nullptr;
}

const TensorView& Outputs::at(std::string_view name) const {
    const auto* view = find(name);
    if (view == nullptr) {
        throw std::logic_error("an output was read before it was checked: " + std::string(name));
    }
    return *view;
}

void check_task(const Manifest& manifest) {
    if (manifest.post_processing) {
        manifest.post_processing->check(manifest.name, manifest.task, manifest.labels->size(), manifest.outputs);
        return;
    }
    switch (manifest.task) {
        case Task::Classification:
            check_score_output(manifest, 2, "(batch, classes)");
            break;
        case Task::Segmentation:
            check_score_output(manifest, 4, "(batch, classes, H, W)");
            break;
        case Task::Detection:
            if (manifest.labels->empty()) {
                throw BundleError(manifest.name + ": a detector has one label at least; export the model again");
            }
            break;
    }
}

const TensorView& checked_scores(const Manifest& manifest, const Outputs& outputs, std::size_t frames,
                                 std::size_t dimensions) {
    const auto& view = outputs.views().front();
    const auto& shape = view.shape;
    const bool fits = shape.size() == dimensions && shape[0] == static_cast<std::int64_t>(frames) &&
                      shape[1] == static_cast<std::int64_t>(manifest.labels->size()) &&
                      std::find(shape.begin(), shape.end(), 0) == shape.end();
    if (!fits) {
        throw BundleError(manifest.name + ": the network answered " + std::to_string(frames) +
                          " images with the shape " + tuple(shape) + ": expected scores for each of the " +
                          std::to_string(manifest.labels->size()) + " labels; export the model again");
    }
    return view;
}

void check_answered(const Manifest& manifest, const Outputs& outputs, std::size_t frames) {
    for (std::size_t i = 0; i < manifest.outputs.size(); ++i) {
        const auto& spec = manifest.outputs[i];
        const auto& shape = outputs.views()[i].shape;
        bool fits = shape.size() == std::max<std::size_t>(spec.shape.size(), 1) &&
                    shape[0] == static_cast<std::int64_t>(frames);
        for (std::size_t d = 1; fits && d < shape.size(); ++d) {
            const auto* said = std::get_if<std::int64_t>(&spec.shape[d]);
            fits = said == nullptr || *said == shape[d];
        }
        if (!fits) {
            throw BundleError(manifest.name + ": the network answered " + std::to_string(frames) + " images with " +
                              repr(spec.name) + " of the shape " + tuple(shape) + ", the manifest says " +
                              tuple(spec.shape) + "; export the model again");
        }
    }
    const auto* status = outputs.find("status");
    if (status == nullptr) {
        return;
    }
    for (std::size_t i = 0; i < frames; ++i) {
        if ((integers_of(*status, i).at(0) & kNotFinite) != 0) {
            throw BackendError(
                "the network answered with NaN or infinite values, of which nothing was made: choose another "
                "precision");
        }
    }
}

void check_labelled(const Manifest& manifest, const std::vector<std::int32_t>& classes) {
    if (classes.empty()) {
        return;
    }
    const auto [lowest, highest] = std::minmax_element(classes.begin(), classes.end());
    if (*lowest < 0 || static_cast<std::size_t>(*highest) >= manifest.labels->size()) {
        throw BundleError(manifest.name + ": the network answered the class " + std::to_string(*highest) + " of " +
                          std::to_string(manifest.labels->size()) + "; export the model again");
    }
}

std::vector<float> floats_of(const TensorView& view, std::size_t frame) {
    const std::size_t count = values_of_a_frame(view);
    std::vector<float> values(count);
    to_floats(view, frame * count, count, values.data());
    return values;
}

std::vector<std::int32_t> integers_of(const TensorView& view, std::size_t frame) {
    const std::size_t count = values_of_a_frame(view);
    if (view.type == ElementType::UInt8) {
        const auto* first = view.elements<std::uint8_t>() + frame * count;
        return {first, first + count};
    }
    const auto* first = view.elements<std::int32_t>() + frame * count;
    return {first, first + count};
}

}  // namespace holocron::detail
