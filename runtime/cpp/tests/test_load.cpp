#include <doctest/doctest.h>

#include <algorithm>

#include "fake_models.hpp"

using namespace holocron;
using namespace holocron::tests;

TEST_CASE("options out of range are refused before anything is opened") {
    const auto refusal = [](const LoadOptions& options) {
        return error_of<ArgumentError>([&] { static_cast<void>(load("/nowhere", options)); });
    };
    LoadOptions options;
    options.threads = 1025;
    CHECK(refusal(options) == "threads is 1025, expected 1 to 1024");
    options = {};
    options.concurrency = 0;
    CHECK(refusal(options) == "concurrency is 0, expected 1 to 1024");
    options = {};
    options.engine.contexts = 65;
    CHECK(refusal(options) == "contexts is 65, expected 1 to 64");
}

TEST_CASE("what is not there cannot be loaded") {
    const tests::TemporaryFolder folder;
    const auto refusal = [](const std::filesystem::path& path, const LoadOptions& options = {}) {
        return error_of<Error>([&] { static_cast<void>(load(path, options)); });
    };
    const auto bundle = folder.path() / "b";
    CHECK(refusal(bundle) == bundle.string() + " is not there: expected a bundle's folder or an ONNX file");
    std::filesystem::create_directory(bundle);
    CHECK(refusal(bundle) == bundle.string() + " is not a bundle: it has no manifest.json");
    tests::write_file(bundle / "manifest.json", tests::mean_colour_manifest(8).dump());
    CHECK(refusal(bundle) == bundle.string() + " has no ONNX file: export the model again");
    tests::write_file(bundle / "x.engine", "x");
    CHECK(refusal(bundle / "x.engine") ==
          (bundle / "x.engine").string() +
              " is not in the manifest beside it, so nothing vouches for it: export the bundle again");
    tests::write_file(folder.path() / "x.onnx", "x");
    CHECK(refusal(folder.path() / "x.onnx").find("is not an ONNX file, or was cut off: ") != std::string::npos);
    tests::write_file(folder.path() / "y.onnx", tests::mean_colour_network(8));
    CHECK(refusal(folder.path() / "y.onnx").find("is an ONNX file without Holocron Edge's metadata") !=
          std::string::npos);
    tests::write_mean_colour_bundle(bundle);
    LoadOptions options;
    options.backend = "tflite";
    CHECK(refusal(bundle, options) ==
          "there is no backend 'tflite': expected one of onnxruntime, openvino, onnxruntime-cuda, "
          "tensorrt, tensorrt_rtx");
    options = {};
    options.precision = "int4";
    CHECK(refusal(bundle, options) ==
          "there is no precision 'int4': expected one of fp32, fp16, int8, int8.cpu, int8.trt");
}

TEST_CASE("a bundle and a lone file are opened by OpenVINO, where it is compiled in") {
    const auto available = available_backends();
    if (std::find(available.begin(), available.end(), "openvino") == available.end()) {
        MESSAGE("OpenVINO is not compiled in: skipped");
        return;
    }
    const tests::TemporaryFolder folder;
    const auto bundle = folder.path() / "b";
    tests::write_mean_colour_bundle(bundle);
    const auto lone = folder.path() / "lone.onnx";
    tests::write_file(lone, tests::mean_colour_network(8, 0, tests::mean_colour_manifest(8).dump()));
    LoadOptions options;
    options.backend = "openvino";
    options.threads = 1;
    const Picture green(0, 255, 51, 30, 20);
    for (const auto& path : {bundle, lone}) {
        const Model model = load(path, options);
        CHECK(model.backend() == "openvino");
        CHECK(model.device() == "cpu");
        CHECK(model.precision() == "fp32");
        CHECK(model.artefact() == (path == bundle ? "model.onnx" : ""));
        CHECK(model.inputs()[0].name == "input");
        const auto result = model.classify(green.frame());
        CHECK(result.label() == "green");
        CHECK(result.logits[2] == doctest::Approx(0.2));
        CHECK(model.classify(std::vector<Frame>(5, green.frame())).size() == 5);
    }
    options.precision = "int8";
    CHECK(error_of<BackendError>([&] { static_cast<void>(load(bundle, options)); }) ==
          bundle.string() + " has no int8.cpu, which int8 means on openvino: it has fp32");
    options = {};
    options.backend = "openvino";
    options.device = "npu9";
    CHECK(error_of<BackendError>([&] {
              static_cast<void>(load(bundle, options));
          }).rfind("openvino has no device 'npu9': expected one of cpu", 0) == 0);
    tests::write_file(bundle / "model.onnx", tests::mean_colour_network(8) + "x");
    CHECK_THROWS_AS(static_cast<void>(load(bundle)), BundleError);
}
