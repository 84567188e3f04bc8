#include "manifest.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "files.hpp"
#include "json_reader.hpp"
#include "text.hpp"
#include "unicode.hpp"

namespace holocron::detail {

namespace {

constexpr std::uint64_t kMaxManifestBytes = 16ULL << 20U;
constexpr std::int64_t kMaxPixelsASide = 1 << 15;
constexpr std::int64_t kMaxExtent = 0x7FFFFFFF;
constexpr std::int64_t kMaxExactInteger = 1LL << 53U;
constexpr double kMinStd = 1e-12;
constexpr std::array<ElementType, 8> kElementTypes{ElementType::Float32, ElementType::Float16, ElementType::UInt8,
                                                   ElementType::Int32,   ElementType::Int64,   ElementType::Float64,
                                                   ElementType::Int8,    ElementType::Bool};
constexpr std::array<Interpolation, 6> kInterpolations{Interpolation::Nearest,  Interpolation::Box,
                                                       Interpolation::Bilinear, Interpolation::Hamming,
                                                       Interpolation::Bicubic,  Interpolation::Lanczos};

bool is_inside_path(std::string_view text) {
    if (text.empty() || text.front() == '/' || text.find_first_of(std::string_view("\\:\0", 3)) != text.npos) {
        return false;
    }
    bool names_something = false;
    while (!text.empty()) {
        const std::size_t slash = std::min(text.find('/'), text.size());
        const auto part = text.substr(0, slash);
        if (part == "..") {
            return false;
        }
        names_something = names_something || (!part.empty() && part != ".");
        text.remove_prefix(std::min(slash + 1, text.size()));
    }
    return names_something;
}

bool is_sha256(std::string_view text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool are_equal(const TensorSpec& a, const TensorSpec& b) {
    return a.name == b.name && a.type == b.type && a.shape == b.shape;
}

/// Turns decoded JSON into a manifest, naming the place of whatever is wrong.
class Parser {
 public:
    explicit Parser(std::string where) : reader_(std::move(where)) {}

    [[nodiscard]] Manifest manifest(const JsonValue& value) const;

 private:
    void check_version(const JsonValue::Object& data) const;
    [[nodiscard]] TensorSpec tensor(const JsonValue& value, const std::string& place) const;
    [[nodiscard]] std::vector<int> sides(const JsonValue& value, const std::string& place) const;
    [[nodiscard]] Preprocessing preprocessing(const JsonValue& value, const std::string& place) const;
    [[nodiscard]] FrameSpec frame(const JsonValue& value, const std::string& place) const;
    [[nodiscard]] Artefact artefact(const JsonValue& value, const std::string& place) const;
    [[nodiscard]] EngineInfo engine(const JsonValue& value, const std::string& place) const;
    void verification(const JsonValue& value, const std::string& place) const;
    [[nodiscard]] std::optional<int> optional_integer(const JsonValue::Object& data, const char* key,
                                                      const std::string& place, int lowest, int highest) const;
    [[nodiscard]] std::vector<double> numbers(const JsonValue& value, const std::string& place) const;

    JsonReader reader_;
};

void Parser::check_version(const JsonValue::Object& data) const {
    const auto* version = find(data, "schema_version");
    const auto* number = version == nullptr ? nullptr : version->as<std::int64_t>();
    if (number == nullptr || *number != kSchemaVersion) {
        throw BundleError(reader_.where() + " has schema version " +
                          (version == nullptr ? "None" : shortened(*version)) + ", this release reads version " +
                          std::to_string(kSchemaVersion) +
                          ": update holocron-edge, or export the model again with this one");
    }
}

Manifest Parser::manifest(const JsonValue& value) const {
    const auto* object = value.as<JsonValue::Object>();
    if (object == nullptr) {
        throw reader_.fail("the top level", "is " + kind_of(value) + ", expected an object");
    }
    const auto& data = *object;
    check_version(data);
    reader_.keys(data, "the top level",
                 {"schema_version", "name", "task", "labels", "inputs", "outputs", "preprocessing"},
                 {"artefacts", "provenance", "frame", "post_processing"});
    const auto read_tensor = [this](const JsonValue& v, const std::string& place) { return tensor(v, place); };
    Manifest result;
    result.name = reader_.text(at(data, "name"), "name");
    constexpr std::array<Task, 3> tasks{Task::Classification, Task::Detection, Task::Segmentation};
    result.task = tasks[reader_.choice(at(data, "task"), "task", {"classification", "detection", "segmentation"})];
    result.labels = std::make_shared<const std::vector<std::string>>(
        reader_.sequence(at(data, "labels"), "labels",
                         [this](const JsonValue& v, const std::string& place) { return reader_.text(v, place); }));
    result.inputs = reader_.sequence(at(data, "inputs"), "inputs", read_tensor);
    result.outputs = reader_.sequence(at(data, "outputs"), "outputs", read_tensor);
    result.preprocessing = preprocessing(at(data, "preprocessing"), "preprocessing");
    if (const auto* artefacts = find(data, "artefacts")) {
        result.artefacts = reader_.sequence(
            *artefacts, "artefacts", [this](const JsonValue& v, const std::string& p) { return artefact(v, p); });
    }
    if (const auto* provenance = find(data, "provenance")) {
        static_cast<void>(reader_.mapping(*provenance, "provenance"));
    }
    if (const auto* described = given(data, "frame")) {
        result.frame = frame(*described, "frame");
    }
    if (const auto* described = given(data, "post_processing")) {
        result.post_processing = parse_post_processing(reader_, *described, "post_processing");
    }
    if (result.inputs.empty() || result.outputs.empty()) {
        throw reader_.fail("inputs and outputs", "need one entry at least");
    }
    if (result.frame) {
        const auto expected = frame_inputs(*result.frame, result.preprocessing);
        if (!std::equal(expected.begin(), expected.end(), result.inputs.begin(), result.inputs.end(), are_equal)) {
            throw reader_.fail("inputs", "are not those of a network that takes such frames");
        }
    }
    std::set<std::string_view> files;
    for (const auto& each : result.artefacts) {
        files.insert(each.file);
    }
    if (files.size() != result.artefacts.size()) {
        throw reader_.fail("artefacts", "name the same file twice");
    }
    return result;
}

TensorSpec Parser::tensor(const JsonValue& value, const std::string& place) const {
    const auto& data = reader_.mapping(value, place);
    reader_.keys(data, place, {"name", "dtype", "shape"}, {});
    TensorSpec spec;
    spec.name = reader_.text(at(data, "name"), place + ".name");
    spec.type =
        kElementTypes[reader_.choice(at(data, "dtype"), place + ".dtype",
                                     {"float32", "float16", "uint8", "int32", "int64", "float64", "int8", "bool"})];
    spec.shape = reader_.sequence(at(data, "shape"), place + ".shape",
                                  [this](const JsonValue& v, const std::string& where) -> Dimension {
                                      if (const auto* name = v.as<std::string>()) {
                                          return *name;
                                      }
                                      return reader_.integer(v, where, 1, kMaxExtent);
                                  });
    return spec;
}

std::vector<int> Parser::sides(const JsonValue& value, const std::string& place) const {
    return reader_.sequence(value, place, [this](const JsonValue& v, const std::string& where) {
        return static_cast<int>(reader_.integer(v, where, 1, kMaxPixelsASide));
    });
}

std::vector<double> Parser::numbers(const JsonValue& value, const std::string& place) const {
    return reader_.sequence(value, place,
                            [this](const JsonValue& v, const std::string& where) { return reader_.number(v, where); });
}

Preprocessing Parser::preprocessing(const JsonValue& value, const std::string& place) const {
    const auto& data = reader_.mapping(value, place);
    reader_.keys(data, place, {"size", "mean", "std"}, {"resize", "pad_mode", "interpolation"});
    Preprocessing result;
    const auto size = sides(at(data, "size"), place + ".size");
    const auto mean = numbers(at(data, "mean"), place + ".mean");
    const auto std = numbers(at(data, "std"), place + ".std");
    if (size.size() != 2 || mean.size() != 3 || std.size() != 3) {
        throw reader_.fail(place, "needs 2 values in size and 3 each in mean and std");
    }
    if (std::any_of(std.begin(), std.end(), [](double s) { return s < kMinStd; })) {
        std::vector<std::string> words;
        std::transform(std.begin(), std.end(), std::back_inserter(words), [](double s) { return repr(s); });
        throw reader_.fail(place + ".std",
                           "is [" + joined(words) + "], expected positive numbers, " + repr(kMinStd) + " at least");
    }
    result.size = {size[0], size[1]};
    std::copy(mean.begin(), mean.end(), result.mean.begin());
    std::copy(std.begin(), std.end(), result.std.begin());
    if (const auto* resize = find(data, "resize")) {
        result.resize =
            reader_.choice(*resize, place + ".resize", {"squish", "pad"}) == 0 ? ResizeMode::Squish : ResizeMode::Pad;
    }
    if (const auto* mode = find(data, "pad_mode")) {
        constexpr std::array<PadMode, 4> modes{PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Symmetric};
        result.pad_mode =
            modes[reader_.choice(*mode, place + ".pad_mode", {"constant", "edge", "reflect", "symmetric"})];
    }
    if (const auto* interpolation = find(data, "interpolation")) {
        result.interpolation = kInterpolations[reader_.choice(
            *interpolation, place + ".interpolation", {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"})];
    }
    return result;
}

FrameSpec Parser::frame(const JsonValue& value, const std::string& place) const {
    const auto& data = reader_.mapping(value, place);
    reader_.keys(data, place, {"channels", "size", "fixed"}, {});
    FrameSpec result;
    const auto size = sides(at(data, "size"), place + ".size");
    if (size.size() != 2) {
        throw reader_.fail(place + ".size", "needs 2 values");
    }
    result.size = {size[0], size[1]};
    result.bgr = reader_.choice(at(data, "channels"), place + ".channels", {"rgb", "bgr"}) == 1;
    result.fixed = reader_.boolean(at(data, "fixed"), place + ".fixed");
    return result;
}

Artefact Parser::artefact(const JsonValue& value, const std::string& place) const {
    const auto& data = reader_.mapping(value, place);
    reader_.keys(data, place, {"file", "kind", "precision", "size", "sha256"}, {"scheme", "engine", "verification"});
    Artefact result;
    constexpr std::array<const char*, 3> precisions{"fp32", "fp16", "int8"};
    result.precision =
        precisions[reader_.choice(at(data, "precision"), place + ".precision", {"fp32", "fp16", "int8"})];
    const auto* scheme = given(data, "scheme");
    if ((scheme != nullptr) != (result.precision == "int8")) {
        throw reader_.fail(place + ".scheme", "is " + (scheme == nullptr ? "None" : shortened(*scheme)) +
                                                  " with precision " + result.precision +
                                                  ": int8 has one, others none");
    }
    result.sha256 = reader_.text(at(data, "sha256"), place + ".sha256");
    if (!is_sha256(result.sha256)) {
        throw reader_.fail(place + ".sha256",
                           "is " + shortened_repr(result.sha256) + ", expected 64 lower-case hexadecimal digits");
    }
    const auto* engine_info = given(data, "engine");
    const auto* verified = given(data, "verification");
    result.is_engine = reader_.choice(at(data, "kind"), place + ".kind", {"onnx", "engine"}) == 1;
    if ((engine_info != nullptr) != result.is_engine) {
        throw reader_.fail(place + ".engine", std::string("must be given for kind engine and for no other, this is ") +
                                                  (result.is_engine ? "engine" : "onnx"));
    }
    result.file = reader_.text(at(data, "file"), place + ".file");
    if (!is_inside_path(result.file)) {
        throw reader_.fail(place + ".file",
                           "is " + shortened_repr(result.file) + ", expected a relative path inside the bundle");
    }
    result.size = static_cast<std::uint64_t>(reader_.integer(at(data, "size"), place + ".size", 0, kMaxExactInteger));
    if (scheme != nullptr) {
        result.scheme = reader_.choice(*scheme, place + ".scheme", {"cpu", "trt"}) == 0 ? "cpu" : "trt";
    }
    if (engine_info != nullptr) {
        result.engine = engine(*engine_info, place + ".engine");
    }
    if (verified != nullptr) {
        verification(*verified, place + ".verification");
    }
    return result;
}

EngineInfo Parser::engine(const JsonValue& value, const std::string& place) const {
    const auto& data = reader_.mapping(value, place);
    reader_.keys(data, place, {"library", "version", "compute_capability", "max_batch"},
                 {"hardware_compatibility", "version_compatible", "stripped", "dla_core", "optimization_level",
                  "workspace_mib"});
    EngineInfo result;
    result.library = reader_.text(at(data, "library"), place + ".library");
    result.version = reader_.text(at(data, "version"), place + ".version");
    result.compute_capability = reader_.text(at(data, "compute_capability"), place + ".compute_capability");
    result.max_batch = static_cast<int>(reader_.integer(at(data, "max_batch"), place + ".max_batch", 1, 1 << 16));
    if (const auto* compatibility = find(data, "hardware_compatibility")) {
        constexpr std::array<HardwareCompatibility, 3> kinds{HardwareCompatibility::None,
                                                             HardwareCompatibility::AmperePlus,
                                                             HardwareCompatibility::SameComputeCapability};
        result.hardware_compatibility = kinds[reader_.choice(*compatibility, place + ".hardware_compatibility",
                                                             {"none", "ampere_plus", "same_compute_capability"})];
    }
    if (const auto* compatible = find(data, "version_compatible")) {
        result.version_compatible = reader_.boolean(*compatible, place + ".version_compatible");
    }
    if (const auto* stripped = find(data, "stripped")) {
        result.stripped = reader_.boolean(*stripped, place + ".stripped");
    }
    result.dla_core = optional_integer(data, "dla_core", place, 0, 15);
    static_cast<void>(optional_integer(data, "optimization_level", place, 0, 5));
    static_cast<void>(optional_integer(data, "workspace_mib", place, 1, 1 << 20));
    return result;
}

void Parser::verification(const JsonValue& value, const std::string& place) const {
    const auto& data = reader_.mapping(value, place);
    reader_.keys(data, place, {"reference", "images", "relative_error", "cosine", "top1_agreement"},
                 {"accuracy", "reference_accuracy", "labelled_images", "backend"});
    for (const char* key : {"top1_agreement", "accuracy", "reference_accuracy"}) {
        if (const auto* number = given(data, key)) {
            static_cast<void>(reader_.number(*number, place + "." + key));
        }
    }
    static_cast<void>(reader_.text(at(data, "reference"), place + ".reference"));
    static_cast<void>(reader_.integer(at(data, "images"), place + ".images", 0, kMaxExactInteger));
    static_cast<void>(reader_.number(at(data, "relative_error"), place + ".relative_error"));
    static_cast<void>(reader_.number(at(data, "cosine"), place + ".cosine"));
    if (const auto* images = find(data, "labelled_images")) {
        static_cast<void>(reader_.integer(*images, place + ".labelled_images", 0, kMaxExactInteger));
    }
    if (const auto* backend = find(data, "backend")) {
        static_cast<void>(reader_.text(*backend, place + ".backend"));
    }
}

std::optional<int> Parser::optional_integer(const JsonValue::Object& data, const char* key, const std::string& place,
                                            int lowest, int highest) const {
    const auto* value = given(data, key);
    if (value == nullptr) {
        return std::nullopt;
    }
    return static_cast<int>(reader_.integer(*value, place + "." + key, lowest, highest));
}

}  // namespace

std::vector<TensorSpec> frame_inputs(const FrameSpec& frame, const Preprocessing& preprocessing) {
    if (frame.fixed) {
        return {
            {kFrameInput,
             ElementType::UInt8,
             {std::string("batch"), std::int64_t{frame.size.height}, std::int64_t{frame.size.width}, std::int64_t{3}}}};
    }
    const std::int64_t height = preprocessing.size.height;
    const std::int64_t width = preprocessing.size.width;
    const std::string batch = "batch";
    return {{kFrameInput, ElementType::UInt8, {batch, std::string("height"), std::string("width"), std::int64_t{3}}},
            {kRowsInput, ElementType::Float32, {batch, height, std::string("height")}},
            {kColumnsInput, ElementType::Float32, {batch, std::string("width"), width}}};
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
    JsonValue data{nullptr};
    try {
        data = parse_json(text);
    } catch (const JsonError& e) {
        throw BundleError(where + " is not JSON (" + e.what() + "): export the model again");
    }
    return Parser(where).manifest(data);
}

Manifest read_manifest(const std::filesystem::path& bundle) {
    const auto path = bundle / kManifestName;
    std::string text;
    try {
        const File file(path);
        if (!file.is_regular()) {
            throw BundleError(path.string() + " is not a file");
        }
        if (file.size() > kMaxManifestBytes) {
            throw BundleError(path.string() + " is larger than " + std::to_string(kMaxManifestBytes >> 20U) +
                              " MiB: this is not a manifest");
        }
        text = file.read(kMaxManifestBytes);
    } catch (const FileError& e) {
        if (e.is_missing()) {
            throw BundleError(bundle.string() + " is not a bundle: it has no " + kManifestName);
        }
        throw BundleError("cannot read " + path.string() + ": " + e.what());
    }
    if (!is_utf8(text)) {
        throw BundleError("cannot read " + path.string() + ": it is not UTF-8 text");
    }
    return parse_manifest(text, path.string());
}

}  // namespace holocron::detail
