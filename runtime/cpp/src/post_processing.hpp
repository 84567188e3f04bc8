/// \file
/// What a graph makes of the network's own outputs, as the manifest tells it: boxes, class maps, the best classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "holocron/model.hpp"
#include "holocron/tensor.hpp"

namespace holocron::detail {

class JsonReader;
struct JsonValue;

/// What is made.
enum class PostProcessingKind { Detections, ClassMap, Probabilities, TopClasses };

/// What becomes of the network's own outputs inside its graph.
struct PostProcessing {
    PostProcessingKind kind = PostProcessingKind::Detections;
    bool in_frame = false;            ///< boxes and class maps are in pixels of the frame, not of the network's input
    double score_threshold = 0;       ///< of detections: boxes of lower scores are left out
    double iou_threshold = 0;         ///< of detections: a box that overlaps a better one by more is left out
    std::int64_t max_detections = 0;  ///< of detections: rows of the outputs
    std::int64_t candidates = 0;      ///< of detections: boxes that take part
    std::int64_t steps = 0;           ///< of detections: how often suppression is applied
    std::int64_t top_k = 0;           ///< of top classes: how many
    bool with_probabilities = false;  ///< of a class map: whether there are probabilities of the classes too

    /// Make sure that a network's outputs are what this says.
    ///
    /// \param name of the model, for errors
    /// \param task what it does
    /// \param classes how many classes it has
    /// \param outputs what it gives
    /// \throws BundleError if they are not
    void check(const std::string& name, Task task, std::size_t classes, const std::vector<TensorSpec>& outputs) const;
};

/// Read the entry of a manifest, which is an object.
///
/// \param reader raises errors that name the place
/// \param value the entry
/// \param place what to call it
/// \throws BundleError if it is not such an entry
[[nodiscard]] PostProcessing parse_post_processing(const JsonReader& reader, const JsonValue& value,
                                                   const std::string& place);

}  // namespace holocron::detail
