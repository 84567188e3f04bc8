#include <algorithm>

#include "c_support.hpp"

using holocron::detail::entry;
using holocron::detail::frames_of;
using holocron::detail::guarded;
using holocron::detail::needed;

namespace {

/// Make answers and hand them out.
template <typename Make>
holocron_status make_results(const holocron_model* model, holocron_results** target, holocron::Task task,
                             Make make) noexcept {
    return guarded([&] {
        needed(target, "results") = nullptr;
        auto made = std::make_unique<holocron_results>();
        made->task = task;
        make(needed(model, "model").model, *made);
        *target = made.release();
    });
}

/// The answer to a frame, which must be of a task.
template <typename Answers>
auto& answer(const holocron_results* results, std::size_t frame, Answers answers, holocron::Task task) {
    const auto& given = needed(results, "results");
    if (given.task != task) {
        throw holocron::ArgumentError("these are results of " + std::string(to_string(given.task)) + ", not of " +
                                      std::string(to_string(task)));
    }
    return entry(given.*answers, frame, "frame");
}

const holocron::Classification& classification(const holocron_results* results, std::size_t frame) {
    return answer(results, frame, &holocron_results::classifications, holocron::Task::Classification);
}

const holocron::Detections& detections(const holocron_results* results, std::size_t frame) {
    return answer(results, frame, &holocron_results::detections, holocron::Task::Detection);
}

const holocron::Segmentation& segmentation(const holocron_results* results, std::size_t frame) {
    return answer(results, frame, &holocron_results::segmentations, holocron::Task::Segmentation);
}

bool is_segmentation(const holocron_results* results) {
    return needed(results, "results").task == holocron::Task::Segmentation;
}

const std::vector<holocron::ClassShare>& regions(const holocron_results* results, std::size_t frame) {
    const auto& found = segmentation(results, frame);
    return entry(results->shares, frame, "frame").of(found);
}

}  // namespace

extern "C" {

holocron_status holocron_classify(const holocron_model* model, const holocron_frame* frames, size_t count,
                                  holocron_results** results) {
    return make_results(model, results, holocron::Task::Classification,
                        [&](const holocron::Model& m, holocron_results& made) {
                            made.classifications = m.classify(frames_of(frames, count));
                        });
}

holocron_status holocron_detect(const holocron_model* model, const holocron_frame* frames, size_t count,
                                holocron_results** results) {
    return make_results(model, results, holocron::Task::Detection,
                        [&](const holocron::Model& m, holocron_results& made) {
                            made.detections = m.detect(frames_of(frames, count));
                        });
}

holocron_status holocron_segment(const holocron_model* model, const holocron_frame* frames, size_t count,
                                 holocron_results** results) {
    return make_results(model, results, holocron::Task::Segmentation,
                        [&](const holocron::Model& m, holocron_results& made) {
                            made.segmentations = m.segment(frames_of(frames, count));
                            made.shares = std::deque<holocron::detail::ClassShares>(made.segmentations.size());
                        });
}

void holocron_results_free(holocron_results* results) { const std::unique_ptr<holocron_results> owned(results); }

size_t holocron_results_count(const holocron_results* results) {
    return results == nullptr
               ? 0
               : results->classifications.size() + results->detections.size() + results->segmentations.size();
}

holocron_status holocron_results_class_count(const holocron_results* results, size_t frame, size_t* count) {
    return guarded([&] {
        needed(count, "count") =
            is_segmentation(results) ? regions(results, frame).size() : classification(results, frame).size();
    });
}

holocron_status holocron_results_class(const holocron_results* results, size_t frame, size_t rank,
                                       holocron_class* found) {
    return guarded([&] {
        auto& target = needed(found, "found");
        if (is_segmentation(results)) {
            const auto& region = entry(regions(results, frame), rank, "rank");
            target = {region.label.c_str(), region.index, region.share};
        } else {
            const auto& each = classification(results, frame);
            target = {each.label(rank).c_str(), each.index(rank), each.score(rank)};
        }
    });
}

holocron_status holocron_results_logits(const holocron_results* results, size_t frame, const float** logits,
                                        size_t* count) {
    return guarded([&] {
        const auto& values = classification(results, frame).logits;
        auto& target = needed(logits, "logits");
        needed(count, "count") = values.size();
        target = values.data();
    });
}

holocron_status holocron_results_detection_count(const holocron_results* results, size_t frame, size_t* count) {
    return guarded([&] { needed(count, "count") = detections(results, frame).size(); });
}

holocron_status holocron_results_detection(const holocron_results* results, size_t frame, size_t index,
                                           holocron_detection* found) {
    return guarded([&] {
        const auto& all = detections(results, frame);
        const auto& object = entry(all.objects, index, "index");
        needed(found, "found") = {object.box.xmin, object.box.ymin, object.box.xmax,         object.box.ymax,
                                  object.score,    object.index,    all.label(index).c_str()};
    });
}

holocron_status holocron_results_detection_status(const holocron_results* results, size_t frame, int32_t* flags) {
    return guarded([&] { needed(flags, "flags") = detections(results, frame).status; });
}

holocron_status holocron_results_class_map(const holocron_results* results, size_t frame, const int32_t** classes,
                                           size_t* height, size_t* width) {
    return guarded([&] {
        const auto& map = segmentation(results, frame).class_map;
        auto& target = needed(classes, "classes");
        auto& rows = needed(height, "height");
        needed(width, "width") = static_cast<size_t>(map.size.width);
        rows = static_cast<size_t>(map.size.height);
        target = map.classes.data();
    });
}

holocron_status holocron_results_pixel_classes(const holocron_results* results, size_t frame, int32_t* classes,
                                               size_t capacity, size_t* height, size_t* width) {
    return guarded([&] {
        const auto& found = segmentation(results, frame);
        const holocron::Size size = found.fits_frame ? found.class_map.size : found.frame_size;
        needed(height, "height") = static_cast<size_t>(size.height);
        needed(width, "width") = static_cast<size_t>(size.width);
        if (classes == nullptr) {
            return;
        }
        if (capacity / *width < *height) {
            throw holocron::ArgumentError("capacity is " + std::to_string(capacity) + ", expected " +
                                          std::to_string(*height * *width) + " at least");
        }
        const auto map = found.resized();
        std::copy(map.classes.begin(), map.classes.end(), classes);
    });
}

}  // extern "C"
