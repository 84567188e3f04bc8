#include <cstdint>

#include "preprocessing.hpp"
#include "tasks/tasks.hpp"

namespace holocron::detail {

namespace {

Size plane_of(const TensorView& view, std::size_t first_dimension) {
    return {static_cast<int>(view.shape[first_dimension]), static_cast<int>(view.shape[first_dimension + 1])};
}

/// For each cell the first of the classes with the largest score. Class by class, so that the compiler vectorizes it.
ClassMap likeliest(const std::vector<float>& scores, Size size) {
    const auto cells = static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width);
    ClassMap map{size, std::vector<std::int32_t>(cells, 0)};
    std::vector<float> best(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(cells));
    const auto classes = static_cast<std::int32_t>(scores.size() / cells);
    for (std::int32_t c = 1; c < classes; ++c) {
        const float* plane = scores.data() + static_cast<std::size_t>(c) * cells;
        for (std::size_t i = 0; i < cells; ++i) {
            map.classes[i] = plane[i] > best[i] ? c : map.classes[i];
            best[i] = plane[i] > best[i] ? plane[i] : best[i];
        }
    }
    return map;
}

Segmentation empty_answer(const Manifest& manifest, Size frame) {
    const PaddedBox placed = padded_box(frame, manifest.preprocessing);
    Segmentation result;
    result.labels = manifest.labels;
    result.frame_size = frame;
    result.placement = {placed.top, placed.left, placed.size, manifest.preprocessing.size};
    return result;
}

/// From scores of the classes, of which the largest is that of the same class whether they are logits or probabilities.
std::vector<Segmentation> from_scores(const Manifest& manifest, const Outputs& outputs, const FrameSizes& frames,
                                      bool are_probabilities) {
    const auto& view = checked_scores(manifest, outputs, frames.size(), 4);
    std::vector<Segmentation> results;
    for (std::size_t i = 0; i < frames.size(); ++i) {
        auto& result = results.emplace_back(empty_answer(manifest, frames[i]));
        auto scores = floats_of(view, i);
        result.class_map = likeliest(scores, plane_of(view, 2));
        if (are_probabilities) {
            result.probabilities = std::move(scores);
            result.probabilities_size = plane_of(view, 2);
        }
    }
    return results;
}

std::vector<Segmentation> from_class_maps(const Manifest& manifest, const Outputs& outputs, const FrameSizes& frames) {
    const auto& map = outputs.at("class_map");
    if (map.shape[1] < 1 || map.shape[2] < 1) {
        throw BundleError(manifest.name + ": the network answered a class map without cells; export the model again");
    }
    const auto* probabilities = outputs.find("probabilities");
    std::vector<Segmentation> results;
    for (std::size_t i = 0; i < frames.size(); ++i) {
        auto& result = results.emplace_back(empty_answer(manifest, frames[i]));
        result.class_map = {plane_of(map, 1), integers_of(map, i)};
        check_labelled(manifest, result.class_map.classes);
        result.fits_frame = manifest.post_processing->in_frame;
        if (probabilities != nullptr && probabilities->shape.size() == 4) {
            result.probabilities = floats_of(*probabilities, i);
            result.probabilities_size = plane_of(*probabilities, 2);
        }
    }
    return results;
}

}  // namespace

std::vector<Segmentation> segmentations(const Manifest& manifest, const Outputs& outputs, const FrameSizes& frames) {
    if (!manifest.post_processing) {
        return from_scores(manifest, outputs, frames, false);
    }
    check_answered(manifest, outputs, frames.size());
    if (manifest.post_processing->kind == PostProcessingKind::Probabilities) {
        return from_scores(manifest, outputs, frames, true);
    }
    return from_class_maps(manifest, outputs, frames);
}

}  // namespace holocron::detail
