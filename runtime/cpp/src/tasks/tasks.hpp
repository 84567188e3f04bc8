/// \file
/// What each task means to a program: how its network's outputs must look, and what becomes of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "holocron/results.hpp"
#include "holocron/tensor.hpp"
#include "manifest.hpp"

namespace holocron::detail {

/// The outputs of a network for some frames, in host memory, in the manifest's order. Their first dimension is the
/// frames.
class Outputs {
 public:
    /// \param manifest whose outputs these are
    /// \param views one an output, in the manifest's order
    Outputs(const Manifest& manifest, std::vector<TensorView> views);

    /// An output by its name; null if there is none.
    [[nodiscard]] const TensorView* find(std::string_view name) const;
    /// An output that the manifest is known to have.
    [[nodiscard]] const TensorView& at(std::string_view name) const;
    [[nodiscard]] const std::vector<TensorView>& views() const noexcept { return views_; }

 private:
    const Manifest* manifest_;
    std::vector<TensorView> views_;
};

/// Sizes of the frames that were given.
using FrameSizes = std::vector<Size>;

/// Make sure that a manifest's outputs are those of its task.
///
/// \throws BundleError if they are not
void check_task(const Manifest& manifest);

/// Answers of a classifier, one a frame.
///
/// \throws BundleError if the outputs are not what the manifest says
/// \throws BackendError if the network says that it had NaN or infinite values
[[nodiscard]] std::vector<Classification> classifications(const Manifest& manifest, const Outputs& outputs,
                                                          const FrameSizes& frames);

/// Answers of a detector, one a frame. \throws as `classifications`, and BundleError for raw heads
[[nodiscard]] std::vector<Detections> detections(const Manifest& manifest, const Outputs& outputs,
                                                 const FrameSizes& frames);

/// Answers of a segmenter, one a frame. \throws as `classifications`
[[nodiscard]] std::vector<Segmentation> segmentations(const Manifest& manifest, const Outputs& outputs,
                                                      const FrameSizes& frames);

/// The one output of scores, whose classes are the second dimension, checked against the labels.
///
/// \param dimensions how many it has
[[nodiscard]] const TensorView& checked_scores(const Manifest& manifest, const Outputs& outputs, std::size_t frames,
                                               std::size_t dimensions);

/// Make sure that the outputs have the shapes that the manifest says and that the network was able to answer.
void check_answered(const Manifest& manifest, const Outputs& outputs, std::size_t frames);

/// Make sure that each of some classes has a label.
void check_labelled(const Manifest& manifest, const std::vector<std::int32_t>& classes);

/// Values of one frame of an output, as float32, whatever their type.
[[nodiscard]] std::vector<float> floats_of(const TensorView& view, std::size_t frame);

/// Values of one frame of an output of whole numbers, uint8 or int32.
[[nodiscard]] std::vector<std::int32_t> integers_of(const TensorView& view, std::size_t frame);

}  // namespace holocron::detail
