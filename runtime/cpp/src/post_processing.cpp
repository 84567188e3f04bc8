#include "post_processing.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "json_reader.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

constexpr std::size_t kLargestByteClasses = 256;
constexpr std::int64_t kLargestCount = 0x7FFFFFFF;

using OutputTypes = std::vector<std::pair<std::string, ElementType>>;

std::string name_of(PostProcessingKind kind) {
    switch (kind) {
        case PostProcessingKind::Detections:
            return "detections";
        case PostProcessingKind::ClassMap:
            return "class_map";
        case PostProcessingKind::Probabilities:
            return "probabilities";
        case PostProcessingKind::TopClasses:
            break;
    }
    return "top_classes";
}

bool is_made_of(PostProcessingKind kind, Task task) {
    switch (kind) {
        case PostProcessingKind::Detections:
            return task == Task::Detection;
        case PostProcessingKind::ClassMap:
            return task == Task::Segmentation;
        case PostProcessingKind::Probabilities:
            return task == Task::Classification || task == Task::Segmentation;
        case PostProcessingKind::TopClasses:
            break;
    }
    return task == Task::Classification;
}

/// Names of the outputs in their order, and the element type of each.
OutputTypes output_types(const PostProcessing& post, std::size_t classes) {
    constexpr auto real = ElementType::Float32;
    constexpr auto integer = ElementType::Int32;
    switch (post.kind) {
        case PostProcessingKind::Detections:
            return {{"boxes", real}, {"scores", real}, {"labels", integer}, {"count", integer}, {"status", integer}};
        case PostProcessingKind::ClassMap: {
            OutputTypes types{{"class_map", classes <= kLargestByteClasses ? ElementType::UInt8 : integer},
                              {"status", integer}};
            if (post.with_probabilities) {
                types.emplace_back("probabilities", real);
            }
            return types;
        }
        case PostProcessingKind::Probabilities:
            return {{"probabilities", real}};
        case PostProcessingKind::TopClasses:
            break;
    }
    return {{"scores", real}, {"labels", integer}, {"status", integer}};
}

std::string listed(const OutputTypes& types) {
    std::vector<std::string> words;
    for (const auto& [name, type] : types) {
        words.push_back(name + " (" + std::string(to_string(type)) + ")");
    }
    return joined(words);
}

std::vector<Dimension> without_batch(const TensorSpec& spec) {
    return {spec.shape.begin() + (spec.shape.empty() ? 0 : 1), spec.shape.end()};
}

/// Whether the outputs, which have the right names, have the right shapes.
bool fits(const PostProcessing& post, std::size_t classes, const std::vector<TensorSpec>& outputs) {
    const auto is = [&outputs](const char* name, const std::vector<Dimension>& shape) {
        return std::any_of(outputs.begin(), outputs.end(),
                           [&](const TensorSpec& spec) { return spec.name == name && without_batch(spec) == shape; });
    };
    if (post.kind == PostProcessingKind::Detections) {
        const Dimension rows = post.max_detections;
        return is("boxes", {rows, std::int64_t{4}}) && is("scores", {rows}) && is("labels", {rows}) &&
               is("count", {}) && is("status", {});
    }
    if (post.kind == PostProcessingKind::TopClasses) {
        return is("scores", {post.top_k}) && is("labels", {post.top_k}) && is("status", {});
    }
    return std::all_of(outputs.begin(), outputs.end(), [&](const TensorSpec& spec) {
        const auto shape = without_batch(spec);
        if (spec.name == "probabilities") {
            return !shape.empty() && shape[0] == Dimension(static_cast<std::int64_t>(classes));
        }
        return spec.name != "class_map" || shape.size() == 2;
    });
}

}  // namespace

void PostProcessing::check(const std::string& name, Task task, std::size_t classes,
                           const std::vector<TensorSpec>& outputs) const {
    if (!is_made_of(kind, task)) {
        throw BundleError(name + ": " + std::string(to_string(task)) + " has no " + name_of(kind) +
                          "; export the model again");
    }
    auto expected = output_types(*this, classes);
    OutputTypes found;
    for (const auto& spec : outputs) {
        found.emplace_back(spec.name, spec.type);
    }
    if (!std::is_permutation(expected.begin(), expected.end(), found.begin(), found.end())) {
        throw BundleError(name + ": " + name_of(kind) + " are the outputs " + listed(expected) + ", this network has " +
                          listed(found) + "; export the model again");
    }
    if (!fits(*this, classes, outputs)) {
        std::vector<std::string> shapes;
        for (const auto& spec : outputs) {
            shapes.push_back(spec.name + " " + tuple(without_batch(spec)));
        }
        throw BundleError(name + ": " + name_of(kind) + " for " + std::to_string(classes) +
                          " classes are not of the shapes " + joined(shapes) + "; export the model again");
    }
}

PostProcessing parse_post_processing(const JsonReader& reader, const JsonValue& value, const std::string& place) {
    const auto& data = reader.mapping(value, place);
    reader.keys(data, place, {"kind"},
                {"coordinates", "score_threshold", "iou_threshold", "max_detections", "candidates", "steps", "top_k",
                 "with_probabilities"});
    constexpr std::array<PostProcessingKind, 4> kinds{PostProcessingKind::Detections, PostProcessingKind::ClassMap,
                                                      PostProcessingKind::Probabilities,
                                                      PostProcessingKind::TopClasses};
    PostProcessing result;
    result.kind = kinds[reader.choice(at(data, "kind"), place + ".kind",
                                      {"detections", "class_map", "probabilities", "top_classes"})];
    // The value of a number that the kind has; null if the kind does not have it.
    const auto number = [&](const char* key, PostProcessingKind owner) -> const JsonValue* {
        const auto* entry = given(data, key);
        if ((entry != nullptr) != (result.kind == owner)) {
            throw reader.fail(place + "." + key, entry == nullptr
                                                     ? "is missing"
                                                     : "is given, which " + name_of(result.kind) + " does not have");
        }
        return entry;
    };
    const auto threshold = [&](const char* key, double& target) {
        if (const auto* entry = number(key, PostProcessingKind::Detections)) {
            target = reader.number(*entry, place + "." + key);
        }
    };
    const auto count = [&](const char* key, PostProcessingKind owner, std::int64_t& target) {
        if (const auto* entry = number(key, owner)) {
            target = reader.integer(*entry, place + "." + key, 1, kLargestCount);
        }
    };
    threshold("score_threshold", result.score_threshold);
    threshold("iou_threshold", result.iou_threshold);
    count("max_detections", PostProcessingKind::Detections, result.max_detections);
    count("candidates", PostProcessingKind::Detections, result.candidates);
    count("steps", PostProcessingKind::Detections, result.steps);
    count("top_k", PostProcessingKind::TopClasses, result.top_k);
    if (const auto* flag = find(data, "with_probabilities")) {
        result.with_probabilities = reader.boolean(*flag, place + ".with_probabilities");
    }
    if (const auto* coordinates = find(data, "coordinates")) {
        result.in_frame = reader.choice(*coordinates, place + ".coordinates", {"network", "frame"}) == 1;
    }
    return result;
}

}  // namespace holocron::detail
