#include "holocron/results.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>

namespace holocron {

namespace {

template <typename Entries>
const auto& entry(const Entries& entries, std::size_t i, const char* what) {
    if (i >= entries.size()) {
        throw ArgumentError(std::string(what) + " " + std::to_string(i) + " does not exist: there are " +
                            std::to_string(entries.size()));
    }
    return entries[i];
}

const std::string& name_of(const Labels& labels, std::int32_t index) {
    return entry(*labels, static_cast<std::size_t>(index), "the class");
}

/// For each of `length` pixels, the cell that its centre falls into, where they fill `inner` of `outer` pixels, from
/// `offset` on, and the cells fill all of `outer`. Integers: no rounding decides.
std::vector<std::size_t> cells_of_pixels(int length, int inner, int offset, int outer, int cells) {
    std::vector<std::size_t> result(static_cast<std::size_t>(length));
    for (std::int64_t i = 0; i < length; ++i) {
        const std::int64_t centre = (2 * i + 1) * inner + std::int64_t{2} * length * offset;
        const std::int64_t cell = centre * cells / (std::int64_t{2} * length * outer);
        result[static_cast<std::size_t>(i)] = static_cast<std::size_t>(std::min<std::int64_t>(cell, cells - 1));
    }
    return result;
}

}  // namespace

const std::string& Classification::label(std::size_t rank) const { return name_of(labels, index(rank)); }

int Classification::index(std::size_t rank) const { return entry(ranking, rank, "the rank").index; }

double Classification::score(std::size_t rank) const { return entry(ranking, rank, "the rank").score; }

std::vector<Prediction> Classification::top(std::size_t k) const {
    if (k == 0) {
        throw ArgumentError("k is 0, expected 1 at least");
    }
    std::vector<Prediction> result;
    for (std::size_t rank = 0; rank < std::min(k, ranking.size()); ++rank) {
        result.push_back({label(rank), index(rank), score(rank)});
    }
    return result;
}

const Detection& Detections::operator[](std::size_t i) const { return entry(objects, i, "the object"); }

const std::string& Detections::label(std::size_t i) const { return label((*this)[i]); }

const std::string& Detections::label(const Detection& object) const { return name_of(labels, object.index); }

std::vector<std::string> Detections::remarks() const {
    std::vector<std::string> texts;
    if ((status & kUnsettled) != 0) {
        texts.emplace_back(
            "some boxes should have been suppressed: the scene needs more steps than the graph has; export the model "
            "with a larger --nms-steps");
    }
    if ((status & kTruncated) != 0) {
        texts.emplace_back(
            "there are more detections than the graph gives: the least certain are missing; export the model with a "
            "larger --max-detections");
    }
    if ((status & kTooManyCandidates) != 0) {
        texts.emplace_back(
            "more boxes reached the score threshold than the graph looks at: the least certain may be missing; export "
            "the model with a larger --candidates or --score-threshold");
    }
    return texts;
}

ClassMap Segmentation::resized() const {
    if (fits_frame) {
        return class_map;
    }
    const auto rows = cells_of_pixels(frame_size.height, placement.inner.height, placement.top, placement.outer.height,
                                      class_map.size.height);
    const auto columns = cells_of_pixels(frame_size.width, placement.inner.width, placement.left, placement.outer.width,
                                         class_map.size.width);
    ClassMap result{frame_size, std::vector<std::int32_t>(rows.size() * columns.size())};
    const auto width = static_cast<std::size_t>(class_map.size.width);
    auto* target = result.classes.data();
    for (const std::size_t row : rows) {
        const std::int32_t* source = class_map.classes.data() + row * width;
        target = std::transform(columns.begin(), columns.end(), target, [source](std::size_t c) { return source[c]; });
    }
    return result;
}

std::vector<ClassShare> Segmentation::regions(std::size_t k) const {
    const ClassMap map = resized();
    std::vector<std::size_t> counts(labels->size());
    for (const std::int32_t c : map.classes) {
        ++counts.at(static_cast<std::size_t>(c));
    }
    std::vector<std::size_t> order(counts.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return counts[a] > counts[b]; });
    std::vector<ClassShare> result;
    for (const std::size_t i : order) {
        if (counts[i] == 0 || (k != 0 && result.size() == k)) {
            break;
        }
        result.push_back({(*labels)[i], static_cast<int>(i),
                          static_cast<double>(counts[i]) / static_cast<double>(map.classes.size())});
    }
    return result;
}

}  // namespace holocron
