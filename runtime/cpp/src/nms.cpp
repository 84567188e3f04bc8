#include "holocron/nms.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "text.hpp"

namespace holocron {

namespace {

void check_threshold(const char* name, double value) {
    if (!(value >= 0 && value <= 1)) {
        throw ArgumentError(std::string(name) + " is " + detail::repr(value) + ", expected a number from 0 to 1");
    }
}

void check_limits(const SelectionLimits& limits) {
    check_threshold("score_threshold", limits.score_threshold);
    check_threshold("iou_threshold", limits.iou_threshold);
    if (limits.max_detections < 1) {
        throw ArgumentError("max_detections is 0, expected 1 at least");
    }
    if (limits.candidates < limits.max_detections) {
        throw ArgumentError("candidates is " + std::to_string(limits.candidates) + ", fewer than the " +
                            std::to_string(limits.max_detections) + " of max_detections, which are chosen from them");
    }
}

float area(const Box& box) { return (box.xmax - box.xmin) * (box.ymax - box.ymin); }

// In float32 as the graphs compute it; 0 / 0 is above no threshold.
float iou(const Box& a, const Box& b) {
    const float width = std::min(a.xmax, b.xmax) - std::max(a.xmin, b.xmin);
    const float height = std::min(a.ymax, b.ymax) - std::max(a.ymin, b.ymin);
    const float overlap = std::max(width, 0.0F) * std::max(height, 0.0F);
    return overlap / (area(a) + area(b) - overlap);
}

/// Indices by falling score, of equal ones in their order; NaN comes last.
void sort_by_score(std::vector<std::size_t>& indices, const std::vector<float>& scores) {
    std::stable_sort(indices.begin(), indices.end(), [&scores](std::size_t a, std::size_t b) {
        return scores[a] > scores[b] || (std::isnan(scores[b]) && !std::isnan(scores[a]));
    });
}

bool is_finite(const Box& box) {
    return std::isfinite(box.xmin) && std::isfinite(box.ymin) && std::isfinite(box.xmax) && std::isfinite(box.ymax);
}

}  // namespace

std::vector<std::size_t> nms(const std::vector<Box>& boxes, const std::vector<float>& scores,
                             const std::vector<std::int32_t>& labels, double iou_threshold) {
    check_threshold("iou_threshold", iou_threshold);
    if (scores.size() != boxes.size() || labels.size() != boxes.size()) {
        throw ArgumentError(std::to_string(boxes.size()) + " boxes, " + std::to_string(scores.size()) + " scores and " +
                            std::to_string(labels.size()) + " labels do not fit: expected as many of each");
    }
    std::vector<std::size_t> order(boxes.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    sort_by_score(order, scores);
    std::map<std::int32_t, std::vector<std::size_t>> kept_of_class;
    std::vector<std::size_t> kept;
    for (const std::size_t i : order) {
        auto& better = kept_of_class[labels[i]];
        const bool dropped = std::any_of(better.begin(), better.end(), [&](std::size_t j) {
            return static_cast<double>(iou(boxes[j], boxes[i])) > iou_threshold;
        });
        if (!dropped) {
            better.push_back(i);
            kept.push_back(i);
        }
    }
    return kept;
}

Selection select_detections(const std::vector<Box>& boxes, const std::vector<float>& scores, std::size_t classes,
                            const SelectionLimits& limits) {
    check_limits(limits);
    if (classes == 0 || scores.size() / classes != boxes.size() || scores.size() % classes != 0) {
        throw ArgumentError(std::to_string(boxes.size()) + " boxes and " + std::to_string(scores.size()) +
                            " scores do not fit: expected " + std::to_string(classes) + " scores a box, 1 at least");
    }
    const bool finite = std::all_of(boxes.begin(), boxes.end(), is_finite) &&
                        std::all_of(scores.begin(), scores.end(), [](float s) { return std::isfinite(s); });
    std::vector<std::size_t> taken;
    std::vector<float> best(boxes.size());
    std::vector<std::int32_t> labels(boxes.size());
    for (std::size_t i = 0; i < boxes.size(); ++i) {
        const auto row = scores.begin() + static_cast<std::ptrdiff_t>(i * classes);
        const auto top = std::max_element(row, row + static_cast<std::ptrdiff_t>(classes));
        best[i] = *top;
        labels[i] = static_cast<std::int32_t>(top - row);
        const bool has_extent = boxes[i].xmin < boxes[i].xmax && boxes[i].ymin < boxes[i].ymax;
        if (has_extent && best[i] >= static_cast<float>(limits.score_threshold)) {
            taken.push_back(i);
        }
    }
    const std::size_t valid = taken.size();
    sort_by_score(taken, best);
    taken.resize(std::min(valid, limits.candidates));

    std::vector<Box> taken_boxes;
    std::vector<float> taken_scores;
    std::vector<std::int32_t> taken_labels;
    for (const std::size_t i : taken) {
        taken_boxes.push_back(boxes[i]);
        taken_scores.push_back(best[i]);
        taken_labels.push_back(labels[i]);
    }
    const auto kept = nms(taken_boxes, taken_scores, taken_labels, limits.iou_threshold);
    Selection selection;
    selection.status |= finite ? 0 : kNotFinite;
    selection.status |= kept.size() > limits.max_detections ? kTruncated : 0;
    selection.status |= valid > limits.candidates && kept.size() < limits.max_detections ? kTooManyCandidates : 0;
    for (std::size_t k = 0; k < std::min(kept.size(), limits.max_detections); ++k) {
        const std::size_t i = kept[k];
        selection.objects.push_back({taken_boxes[i], taken_scores[i], taken_labels[i]});
    }
    return selection;
}

}  // namespace holocron
