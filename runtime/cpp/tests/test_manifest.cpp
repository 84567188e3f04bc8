#include <doctest/doctest.h>

#include <functional>

#include "bundle_files.hpp"
#include "manifest.hpp"

using namespace holocron;
using namespace holocron::detail;
using nlohmann::json;

namespace {

/// A manifest that has everything.
json full_manifest() {
    auto manifest = tests::mean_colour_manifest(16);
    manifest["provenance"] = {{"seed", 7}, {"nested", {{"a", {1, 2, 3}}}}};
    manifest["preprocessing"]["resize"] = "pad";
    manifest["preprocessing"]["pad_mode"] = "reflect";
    manifest["preprocessing"]["interpolation"] = "lanczos";
    json onnx = tests::artefact_entry("model.int8.cpu.onnx", "x");
    onnx["precision"] = "int8";
    onnx["scheme"] = "cpu";
    onnx["verification"] = {{"reference", "pytorch"}, {"images", 10},        {"relative_error", 0.01},
                            {"cosine", 0.999},        {"top1_agreement", 1}, {"accuracy", nullptr}};
    json engine = tests::artefact_entry("a/b.engine", "y");
    engine["kind"] = "engine";
    engine["engine"] = {{"library", "tensorrt"},
                        {"version", "10.3.0"},
                        {"compute_capability", "8.7"},
                        {"max_batch", 4},
                        {"hardware_compatibility", "ampere_plus"},
                        {"version_compatible", true},
                        {"stripped", true},
                        {"dla_core", 1},
                        {"optimization_level", 5},
                        {"workspace_mib", nullptr}};
    manifest["artefacts"] = {onnx, engine};
    return manifest;
}

std::string error_of(const std::string& text) {
    try {
        static_cast<void>(parse_manifest(text, "m"));
    } catch (const BundleError& e) {
        return e.what();
    }
    return "";
}

/// The error of a manifest with something changed.
std::string error_with(const std::function<void(json&)>& change) {
    auto manifest = full_manifest();
    change(manifest);
    return error_of(manifest.dump());
}

}  // namespace

TEST_CASE("a manifest with everything is read") {
    const auto manifest = parse_manifest(full_manifest().dump());
    CHECK(manifest.name == "mean_colour");
    CHECK(manifest.task == Task::Classification);
    CHECK(manifest.labels->size() == 3);
    CHECK(manifest.inputs[0].type == ElementType::Float32);
    CHECK(std::get<std::string>(manifest.inputs[0].shape[0]) == "batch");
    CHECK(std::get<std::int64_t>(manifest.inputs[0].shape[1]) == 3);
    CHECK(manifest.preprocessing.resize == ResizeMode::Pad);
    CHECK(manifest.preprocessing.pad_mode == PadMode::Reflect);
    CHECK(manifest.preprocessing.interpolation == Interpolation::Lanczos);
    REQUIRE(manifest.artefacts.size() == 2);
    CHECK(manifest.artefacts[0].variant() == "int8.cpu");
    REQUIRE(manifest.artefacts[1].engine);
    CHECK(manifest.artefacts[1].engine->dla_core == 1);
    CHECK(manifest.artefacts[1].engine->hardware_compatibility == HardwareCompatibility::AmperePlus);
    CHECK(manifest.artefacts[1].engine->stripped);
}

TEST_CASE("what is left out has its default") {
    auto data = tests::mean_colour_manifest(16);
    data.erase("artefacts");
    const auto manifest = parse_manifest(data.dump());
    CHECK(manifest.artefacts.empty());
    CHECK_FALSE(manifest.frame);
    CHECK_FALSE(manifest.post_processing);
    CHECK(manifest.preprocessing.resize == ResizeMode::Squish);
    CHECK(manifest.preprocessing.interpolation == Interpolation::Bilinear);
}

TEST_CASE("an unknown schema version is refused before anything else") {
    const std::string remedy =
        ", this release reads version 1: update holocron-edge, or export the model again with this one";
    CHECK(error_of(R"({"schema_version": 2, "other": 1})") == "m has schema version 2" + remedy);
    CHECK(error_of("{}") == "m has schema version None" + remedy);
    CHECK(error_of(R"({"schema_version": true})") == "m has schema version True" + remedy);
    CHECK(error_of(R"({"schema_version": "1"})") == "m has schema version '1'" + remedy);
    CHECK(error_of(R"({"schema_version": 1.0})") == "m has schema version 1.0" + remedy);
    CHECK(error_of("[]") == "m: the top level is a list, expected an object");
}

TEST_CASE("errors name the place") {
    CHECK(error_with([](json& m) { m["extra"] = 1; }) == "m: the top level has the unknown key 'extra'");
    CHECK(error_with([](json& m) { m.erase("task"); }) == "m: the top level lacks the key 'task'");
    CHECK(error_with([](json& m) { m["name"] = 5; }) == "m: name is a number, expected a string");
    CHECK(error_with([](json& m) { m["task"] = "tracking"; }) ==
          "m: task is 'tracking', expected one of classification, detection, segmentation");
    CHECK(error_with([](json& m) { m["labels"][1] = nullptr; }) == "m: labels[1] is null, expected a string");
    CHECK(error_with([](json& m) { m["inputs"] = json::array(); }) == "m: inputs and outputs need one entry at least");
    CHECK(error_with([](json& m) { m["inputs"][0]["shape"][1] = 0; }) ==
          "m: inputs[0].shape[1] is 0, expected an integer from 1 to 2147483647");
    CHECK(error_with([](json& m) { m["inputs"][0]["shape"][1] = true; }) ==
          "m: inputs[0].shape[1] is True, expected an integer from 1 to 2147483647");
    CHECK(error_with([](json& m) { m["inputs"][0]["dtype"] = "float"; }) ==
          "m: inputs[0].dtype is 'float', expected one of float32, float16, uint8, int32, int64, float64, int8, bool");
    CHECK(error_with([](json& m) {
              m["preprocessing"]["size"] = {1, 2, 3};
          }) == "m: preprocessing needs 2 values in size and 3 each in mean and std");
    CHECK(error_with([](json& m) {
              m["preprocessing"]["std"] = {1, 0, 1e-13};
          }) == "m: preprocessing.std is [1.0, 0.0, 1e-13], expected positive numbers, 1e-12 at least");
    CHECK(error_with([](json& m) { m["preprocessing"]["mean"][2] = 1e31; }) ==
          "m: preprocessing.mean[2] is 1e+31, expected a finite number");
    CHECK(error_with([](json& m) { m["preprocessing"]["size"][0] = 40000; }) ==
          "m: preprocessing.size[0] is 40000, expected an integer from 1 to 32768");
    CHECK(error_with([](json& m) { m["provenance"] = 1; }) == "m: provenance is a number, expected an object");
    CHECK(error_with([](json& m) { m["artefacts"][0]["scheme"] = nullptr; }) ==
          "m: artefacts[0].scheme is None with precision int8: int8 has one, others none");
    CHECK(error_with([](json& m) { m["artefacts"][1]["scheme"] = "cpu"; }) ==
          "m: artefacts[1].scheme is 'cpu' with precision fp32: int8 has one, others none");
    CHECK(error_with([](json& m) { m["artefacts"][1]["engine"] = nullptr; }) ==
          "m: artefacts[1].engine must be given for kind engine and for no other, this is engine");
    CHECK(error_with([](json& m) { m["artefacts"][1]["file"] = m["artefacts"][0]["file"]; }) ==
          "m: artefacts name the same file twice");
    CHECK(error_with([](json& m) { m["artefacts"][0]["sha256"] = "AB"; }) ==
          "m: artefacts[0].sha256 is 'AB', expected 64 lower-case hexadecimal digits");
    CHECK(error_with([](json& m) { m["artefacts"][0]["verification"]["cosine"] = "x"; }) ==
          "m: artefacts[0].verification.cosine is 'x', expected a finite number");
    CHECK(error_with([](json& m) { m["artefacts"][1]["engine"]["max_batch"] = 0; }) ==
          "m: artefacts[1].engine.max_batch is 0, expected an integer from 1 to 65536");
}

TEST_CASE("numbers of hundreds of digits are refused") {
    auto text = full_manifest().dump();
    const auto digits = std::string(400, '9');
    const auto place = text.find("\"size\":[16,16]");
    REQUIRE(place != std::string::npos);
    text.replace(place, 14, "\"size\":[16," + std::string(25, '9') + "]");
    CHECK(error_of(text) ==
          "m: preprocessing.size[1] is 9999999999999999999999999, expected an integer from 1 to 32768");
    text.replace(text.find(std::string(25, '9')), 25, digits);
    CHECK(error_of(text).rfind("m is not JSON (", 0) == 0);
}

TEST_CASE("paths that leave the bundle are refused") {
    for (const char* file : {"", "/etc/passwd", "../x", "a/../../x", "a\\b", "c:x", ".", "./.", "./"}) {
        CAPTURE(file);
        const auto error = error_with([&](json& m) { m["artefacts"][0]["file"] = file; });
        CHECK(error.find(", expected a relative path inside the bundle") != std::string::npos);
    }
    CHECK(error_with([](json& m) { m["artefacts"][0]["file"] = std::string("a\0b", 3); }) ==
          R"(m: artefacts[0].file is 'a\x00b', expected a relative path inside the bundle)");
    CHECK(error_with([](json& m) { m["artefacts"][0]["file"] = "./a/..b/c"; }).empty());
}

TEST_CASE("a frame decides about the inputs") {
    auto manifest = full_manifest();
    manifest["frame"] = {{"channels", "bgr"}, {"size", {480, 640}}, {"fixed", true}};
    CHECK(error_of(manifest.dump()) == "m: inputs are not those of a network that takes such frames");
    manifest["inputs"] = {{{"name", "frame"}, {"dtype", "uint8"}, {"shape", {"batch", 480, 640, 3}}}};
    const auto parsed = parse_manifest(manifest.dump());
    REQUIRE(parsed.frame);
    CHECK(parsed.frame->bgr);
    CHECK(parsed.frame->size == Size{480, 640});
    CHECK(error_with([](json& m) {
              m["frame"] = {{"channels", "bgr"}, {"size", {1}}, {"fixed", true}};
          }) == "m: frame.size needs 2 values");
}

TEST_CASE("post-processing has the numbers of its kind and no others") {
    const json detections = {{"kind", "detections"},  {"score_threshold", 0.25}, {"iou_threshold", 0.5},
                             {"max_detections", 100}, {"candidates", 300},       {"steps", 16}};
    CHECK(error_with([&](json& m) { m["post_processing"] = detections; }).empty());
    CHECK(error_with([&](json& m) {
              m["post_processing"] = detections;
              m["post_processing"].erase("steps");
          }) == "m: post_processing.steps is missing");
    CHECK(error_with([&](json& m) {
              m["post_processing"] = detections;
              m["post_processing"]["top_k"] = 5;
          }) == "m: post_processing.top_k is given, which detections does not have");
    CHECK(error_with([](json& m) {
              m["post_processing"] = {{"kind", "boxes"}};
          }) ==
          "m: post_processing.kind is 'boxes', expected one of detections, class_map, probabilities, top_classes");
    CHECK(error_with([](json& m) {
              m["post_processing"] = {{"kind", "class_map"}, {"coordinates", "world"}};
          }) == "m: post_processing.coordinates is 'world', expected one of network, frame");
}

TEST_CASE("a folder is read, and what is none is told") {
    const tests::TemporaryFolder folder;
    const auto bundle = folder.path() / "b";
    const auto error = [&] {
        try {
            static_cast<void>(read_manifest(bundle));
        } catch (const BundleError& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    CHECK(error() == bundle.string() + " is not a bundle: it has no manifest.json");
    tests::write_mean_colour_bundle(bundle);
    CHECK(read_manifest(bundle).name == "mean_colour");
    tests::write_file(bundle / "manifest.json", "{\"name\": \"\xff\"}");
    CHECK(error() == "cannot read " + (bundle / "manifest.json").string() + ": it is not UTF-8 text");
    std::filesystem::resize_file(bundle / "manifest.json", (std::uintmax_t{16} << 20U) + 1);
    CHECK(error() == (bundle / "manifest.json").string() + " is larger than 16 MiB: this is not a manifest");
    std::filesystem::remove(bundle / "manifest.json");
    std::filesystem::create_directory(bundle / "manifest.json");
    CHECK(error() == (bundle / "manifest.json").string() + " is not a file");
}

TEST_CASE("every prefix of a manifest is refused") {
    const auto text = full_manifest().dump();
    for (std::size_t length = 0; length < text.size(); ++length) {
        CAPTURE(length);
        REQUIRE(!error_of(text.substr(0, length)).empty());
    }
}
