#include <algorithm>

#include "preprocessing.hpp"
#include "tasks/tasks.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

/// From pixels of the network's input to pixels of the frame: resizing and padding are undone, the rest is clipped.
class BoxMapping {
 public:
    BoxMapping(Size frame, const Preprocessing& preprocessing)
        : frame_(frame), placed_(padded_box(frame, preprocessing)) {}

    [[nodiscard]] Box operator()(const Box& box) const { return {x(box.xmin), y(box.ymin), x(box.xmax), y(box.ymax)}; }

 private:
    [[nodiscard]] float x(float value) const { return moved(value, placed_.left, frame_.width, placed_.size.width); }
    [[nodiscard]] float y(float value) const { return moved(value, placed_.top, frame_.height, placed_.size.height); }
    static float moved(float value, int offset, int frame, int inner) {
        const double scaled = (static_cast<double>(value) - offset) * (static_cast<double>(frame) / inner);
        return static_cast<float>(std::clamp(scaled, 0.0, static_cast<double>(frame)));
    }

    Size frame_;
    PaddedBox placed_;
};

std::size_t used_rows(const Manifest& manifest, const Outputs& outputs, std::size_t frame, std::size_t rows) {
    const std::int32_t count = integers_of(outputs.at("count"), frame).at(0);
    if (count < 0 || static_cast<std::size_t>(count) > rows) {
        throw BundleError(manifest.name + ": the network says " + std::to_string(count) + " boxes of " +
                          std::to_string(rows));
    }
    return static_cast<std::size_t>(count);
}

Detections detections_of(const Manifest& manifest, const Outputs& outputs, Size size, std::size_t frame) {
    const auto boxes = floats_of(outputs.at("boxes"), frame);
    const auto scores = floats_of(outputs.at("scores"), frame);
    const auto indices = integers_of(outputs.at("labels"), frame);
    const std::size_t count = used_rows(manifest, outputs, frame, scores.size());
    const BoxMapping in_frame(size, manifest.preprocessing);
    Detections result{{}, manifest.labels, size, integers_of(outputs.at("status"), frame).at(0)};
    std::vector<std::int32_t> found;
    for (std::size_t i = 0; i < count; ++i) {
        Box box{boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
        if (!manifest.post_processing->in_frame) {
            box = in_frame(box);
        }
        // A box in the padding alone is none of the image.
        if (box.xmin < box.xmax && box.ymin < box.ymax) {
            result.objects.push_back({box, scores[i], indices[i]});
            found.push_back(indices[i]);
        }
    }
    check_labelled(manifest, found);
    return result;
}

}  // namespace

std::vector<Detections> detections(const Manifest& manifest, const Outputs& outputs, const FrameSizes& frames) {
    if (!manifest.post_processing) {
        throw BundleError(manifest.name + " gives the raw output of its detection head (" +
                          quoted_names(manifest.outputs) +
                          "), not boxes: take the arrays with Model::run and decode them as the architecture asks, or "
                          "export it without --raw");
    }
    check_answered(manifest, outputs, frames.size());
    std::vector<Detections> results;
    for (std::size_t i = 0; i < frames.size(); ++i) {
        results.push_back(detections_of(manifest, outputs, frames[i], i));
    }
    return results;
}

}  // namespace holocron::detail
