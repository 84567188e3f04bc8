#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tasks/tasks.hpp"

namespace holocron::detail {

namespace {

/// All classes with their softmax probabilities, likeliest first, of equal ones the lower index first.
std::vector<RankedClass> ranked(const std::vector<float>& logits) {
    const double largest = *std::max_element(logits.begin(), logits.end());
    std::vector<double> exponentials(logits.size());
    std::transform(logits.begin(), logits.end(), exponentials.begin(),
                   [largest](float logit) { return std::exp(static_cast<double>(logit) - largest); });
    const double sum = std::accumulate(exponentials.begin(), exponentials.end(), 0.0);
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&logits](int a, int b) {
        const float first = logits[static_cast<std::size_t>(a)];
        const float second = logits[static_cast<std::size_t>(b)];
        return first != second ? first > second : a < b;
    });
    std::vector<RankedClass> ranking(logits.size());
    std::transform(order.begin(), order.end(), ranking.begin(), [&](int i) {
        return RankedClass{i, exponentials[static_cast<std::size_t>(i)] / sum};
    });
    return ranking;
}

Classification from_logits(std::vector<float> logits, const Labels& labels) {
    auto ranking = ranked(logits);
    return {std::move(ranking), std::move(logits), labels};
}

/// Logarithms of probabilities serve as logits, to which a constant may be added without changing what they say.
Classification from_probabilities(std::vector<float> probabilities, const Labels& labels) {
    for (float& p : probabilities) {
        p = std::log(std::max(p, std::numeric_limits<float>::min()));
    }
    return from_logits(std::move(probabilities), labels);
}

Classification from_top_classes(const Manifest& manifest, const Outputs& outputs, std::size_t frame) {
    const auto indices = integers_of(outputs.at("labels"), frame);
    const auto scores = floats_of(outputs.at("scores"), frame);
    check_labelled(manifest, indices);
    Classification result{{}, {}, manifest.labels};
    for (std::size_t i = 0; i < indices.size(); ++i) {
        result.ranking.push_back({indices[i], scores[i]});
    }
    return result;
}

}  // namespace

std::vector<Classification> classifications(const Manifest& manifest, const Outputs& outputs,
                                            const FrameSizes& frames) {
    std::vector<Classification> results;
    if (!manifest.post_processing) {
        const auto& scores = checked_scores(manifest, outputs, frames.size(), 2);
        for (std::size_t i = 0; i < frames.size(); ++i) {
            results.push_back(from_logits(floats_of(scores, i), manifest.labels));
        }
        return results;
    }
    check_answered(manifest, outputs, frames.size());
    const bool top = manifest.post_processing->kind == PostProcessingKind::TopClasses;
    for (std::size_t i = 0; i < frames.size(); ++i) {
        results.push_back(top ? from_top_classes(manifest, outputs, i)
                              : from_probabilities(floats_of(outputs.at("probabilities"), i), manifest.labels));
    }
    return results;
}

}  // namespace holocron::detail
