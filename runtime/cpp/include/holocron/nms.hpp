/// \file
/// Non-maximum suppression, for what a detector's raw heads decode to.
///
/// It answers as the graphs do that `holocron-export` puts behind detectors, and as `torchvision.ops.batched_nms`:
/// greedy, within each class, of equal scores the lower index first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "holocron/export.h"
#include "holocron/results.hpp"

namespace holocron {

/// Which boxes greedy suppression keeps, class by class.
///
/// \param boxes n of them
/// \param scores n of them
/// \param labels n of them; boxes of different labels do not suppress each other
/// \param iou_threshold a box is dropped if it overlaps a better one by an IoU above this, computed in float32
/// \return indices of the boxes that are kept, the best first; of equal scores the lower index first
/// \throws ArgumentError if the numbers of entries differ, or the threshold is not from 0 to 1
[[nodiscard]] HOLOCRON_API std::vector<std::size_t> nms(const std::vector<Box>& boxes, const std::vector<float>& scores,
                                                        const std::vector<std::int32_t>& labels,
                                                        double iou_threshold = 0.45);

/// What `select_detections` is asked for.
struct SelectionLimits {
    double score_threshold = 0.25;     ///< a box needs that score at least
    double iou_threshold = 0.45;       ///< a box is dropped if it overlaps a better one of its class by more
    std::size_t max_detections = 100;  ///< at most that many are given, the most certain
    std::size_t candidates = 300;      ///< at most that many boxes take part, the most certain
};

/// The detections of one image, the best first.
struct Selection {
    std::vector<Detection> objects;
    std::int32_t status = 0;  ///< 0, or a sum of `DetectionStatus`
};

/// The detections among the candidate boxes of one image.
///
/// \param boxes P of them; those without extent are left out
/// \param scores P rows of `classes` scores: each box is of its best class, of equal ones the first
/// \param classes how many, 1 at least
/// \param limits thresholds and counts
/// \throws ArgumentError if the numbers of entries do not fit, or a number is out of its range
[[nodiscard]] HOLOCRON_API Selection select_detections(const std::vector<Box>& boxes, const std::vector<float>& scores,
                                                       std::size_t classes, const SelectionLimits& limits = {});

}  // namespace holocron
