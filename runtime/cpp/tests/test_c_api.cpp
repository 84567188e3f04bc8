#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "bundle_files.hpp"
#include "c_support.hpp"
#include "holocron/runtime.h"

using namespace holocron;

namespace {

bool has_openvino() {
    const auto available = available_backends();
    return std::find(available.begin(), available.end(), "openvino") != available.end();
}

std::string error() { return holocron_last_error(); }

}  // namespace

TEST_CASE("C: options have defaults") {
    holocron_load_options options;
    REQUIRE(holocron_load_options_init(&options) == HOLOCRON_OK);
    CHECK(options.size == sizeof(options));
    CHECK(options.backend == nullptr);
    CHECK(options.concurrency == 1);
    CHECK(options.contexts == 4);
    CHECK(options.cuda_graphs == 1);
    CHECK(std::string(holocron_version()) == version());
}

TEST_CASE("C: null pointers are told by their names") {
    holocron_model* model = nullptr;
    CHECK(holocron_load(nullptr, nullptr, &model) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(error() == "the argument path is null");
    CHECK(holocron_load("x", nullptr, nullptr) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(error() == "the argument model is null");
    CHECK(holocron_load_options_init(nullptr) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(holocron_model_close(nullptr) == HOLOCRON_ERROR_ARGUMENT);
    holocron_model_free(nullptr);
    holocron_results_free(nullptr);
    holocron_tensors_free(nullptr);
    CHECK(holocron_model_name(nullptr) == nullptr);
    CHECK(holocron_model_precision(nullptr) == nullptr);
    CHECK(holocron_model_backend(nullptr) == nullptr);
    CHECK(holocron_model_device(nullptr) == nullptr);
    CHECK(holocron_model_artefact(nullptr) == nullptr);
    CHECK(holocron_model_label(nullptr, 0) == nullptr);
    CHECK(holocron_model_label_count(nullptr) == 0);
    CHECK(holocron_model_input_count(nullptr) == 0);
    CHECK(holocron_model_output_count(nullptr) == 0);
    CHECK(holocron_results_count(nullptr) == 0);
    CHECK(holocron_tensors_count(nullptr) == 0);
    holocron_task task{};
    std::int32_t number = 0;
    size_t count = 0;
    const float* logits = nullptr;
    const std::int32_t* classes = nullptr;
    holocron_tensor tensor{};
    holocron_class found{};
    holocron_detection object{};
    holocron_results* results = nullptr;
    holocron_tensors* tensors = nullptr;
    const std::vector<holocron_status> statuses{holocron_model_task(nullptr, &task),
                                                holocron_model_warm_up(nullptr, 0, 0),
                                                holocron_model_threads(nullptr, &number),
                                                holocron_model_input_size(nullptr, &number, &number),
                                                holocron_model_input(nullptr, 0, &tensor),
                                                holocron_model_output(nullptr, 0, &tensor),
                                                holocron_classify(nullptr, nullptr, 0, &results),
                                                holocron_detect(nullptr, nullptr, 0, &results),
                                                holocron_segment(nullptr, nullptr, 0, &results),
                                                holocron_classify(nullptr, nullptr, 0, nullptr),
                                                holocron_run_frames(nullptr, nullptr, 0, &tensors),
                                                holocron_feeds(nullptr, nullptr, 0, &tensors),
                                                holocron_run(nullptr, nullptr, 0, &tensors),
                                                holocron_results_class_count(nullptr, 0, &count),
                                                holocron_results_class(nullptr, 0, 0, &found),
                                                holocron_results_logits(nullptr, 0, &logits, &count),
                                                holocron_results_detection_count(nullptr, 0, &count),
                                                holocron_results_detection(nullptr, 0, 0, &object),
                                                holocron_results_detection_status(nullptr, 0, &number),
                                                holocron_results_class_map(nullptr, 0, &classes, &count, &count),
                                                holocron_results_pixel_classes(nullptr, 0, nullptr, 0, &count, &count),
                                                holocron_tensors_at(nullptr, 0, &tensor),
                                                holocron_tensors_find(nullptr, "x", &tensor)};
    for (const auto status : statuses) {
        CHECK(status == HOLOCRON_ERROR_ARGUMENT);
    }
}

TEST_CASE("C: errors are of their kind, and of their thread") {
    holocron_model* model = nullptr;
    CHECK(holocron_load("/nowhere", nullptr, &model) == HOLOCRON_ERROR_BUNDLE);
    CHECK(model == nullptr);
    CHECK(error() == "/nowhere is not there: expected a bundle's folder or an ONNX file");
    std::thread([] { CHECK(error().empty()); }).join();
    holocron_load_options options;
    holocron_load_options_init(&options);
    options.threads = -1;
    CHECK(holocron_load("/nowhere", &options, &model) == HOLOCRON_ERROR_ARGUMENT);
    options.size = 3;
    CHECK(holocron_load("/nowhere", &options, &model) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(error().rfind("options.size is 3, expected ", 0) == 0);
}

TEST_CASE("C: exceptions become statuses") {
    using detail::guarded;
    CHECK(guarded([] { throw BundleError("a"); }) == HOLOCRON_ERROR_BUNDLE);
    CHECK(guarded([] { throw BackendError("a"); }) == HOLOCRON_ERROR_BACKEND);
    CHECK(guarded([] { throw ImageError("a"); }) == HOLOCRON_ERROR_IMAGE);
    CHECK(guarded([] { throw InputError("a"); }) == HOLOCRON_ERROR_INPUT);
    CHECK(guarded([] { throw std::bad_alloc(); }) == HOLOCRON_ERROR_MEMORY);
    CHECK(guarded([] { throw std::runtime_error("b"); }) == HOLOCRON_ERROR_INTERNAL);
    CHECK(error() == "b");
    CHECK(guarded([] { throw 1; }) == HOLOCRON_ERROR_INTERNAL);
    CHECK(guarded([] {}) == HOLOCRON_OK);
}

TEST_CASE("C: the shares of classes are computed when they are asked for, once, by whichever thread") {
    holocron_results results;
    results.task = Task::Segmentation;
    const Labels labels = std::make_shared<const std::vector<std::string>>(std::vector<std::string>{"a", "b", "c"});
    for (const std::int32_t odd : {1, 7}) {
        Segmentation answer;
        answer.class_map = {{2, 2}, {2, 2, 2, odd}};
        answer.labels = labels;
        answer.frame_size = {2, 2};
        answer.fits_frame = true;
        results.segmentations.push_back(answer);
    }
    results.shares = std::deque<detail::ClassShares>(2);
    std::vector<const char*> names(8);
    std::vector<std::thread> threads;
    for (auto& name : names) {
        threads.emplace_back([&results, &name] {
            holocron_class found{};
            CHECK(holocron_results_class(&results, 0, 0, &found) == HOLOCRON_OK);
            CHECK(found.score == 0.75);
            name = found.label;
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(std::string(names[0]) == "c");
    CHECK(std::all_of(names.begin(), names.end(), [&](const char* name) { return name == names[0]; }));
    size_t count = 0;
    CHECK(holocron_results_class_count(&results, 0, &count) == HOLOCRON_OK);
    CHECK(count == 2);
    // A class map that no model gives: looking at the shares fails, each time, and nothing else does.
    const std::int32_t* classes = nullptr;
    size_t height = 0;
    size_t width = 0;
    CHECK(holocron_results_class_map(&results, 1, &classes, &height, &width) == HOLOCRON_OK);
    CHECK(holocron_results_class_count(&results, 1, &count) == HOLOCRON_ERROR_INTERNAL);
    CHECK(holocron_results_class_count(&results, 1, &count) == HOLOCRON_ERROR_INTERNAL);
    CHECK(holocron_results_class_count(&results, 2, &count) == HOLOCRON_ERROR_ARGUMENT);
}

TEST_CASE("C: a bundle is opened and run, where OpenVINO is compiled in") {
    if (!has_openvino()) {
        MESSAGE("OpenVINO is not compiled in: skipped");
        return;
    }
    const tests::TemporaryFolder folder;
    tests::write_mean_colour_bundle(folder.path());
    holocron_load_options options;
    holocron_load_options_init(&options);
    options.backend = "openvino";
    options.threads = 1;
    holocron_model* model = nullptr;
    REQUIRE(holocron_load(folder.path().c_str(), &options, &model) == HOLOCRON_OK);
    CHECK(std::string(holocron_model_name(model)) == "mean_colour");
    CHECK(std::string(holocron_model_precision(model)) == "fp32");
    CHECK(std::string(holocron_model_artefact(model)) == "model.onnx");
    CHECK(holocron_model_label_count(model) == 3);
    CHECK(std::string(holocron_model_label(model, 2)) == "blue");
    CHECK(holocron_model_label(model, 3) == nullptr);
    holocron_task task{};
    CHECK(holocron_model_task(model, &task) == HOLOCRON_OK);
    CHECK(task == HOLOCRON_TASK_CLASSIFICATION);
    holocron_tensor spec{};
    REQUIRE(holocron_model_input(model, 0, &spec) == HOLOCRON_OK);
    CHECK(spec.rank == 4);
    CHECK(spec.shape[0] == -1);
    CHECK(spec.shape[3] == 8);
    CHECK(holocron_model_input(model, 1, &spec) == HOLOCRON_ERROR_ARGUMENT);

    CHECK(holocron_model_warm_up(model, 0, 0) == HOLOCRON_OK);

    std::vector<std::uint8_t> pixels(8 * 8 * 3, 0);
    for (std::size_t i = 1; i < pixels.size(); i += 3) {
        pixels[i] = 255;
    }
    holocron_frame frame{};
    frame.pixels = pixels.data();
    frame.width = frame.height = 8;
    frame.format = HOLOCRON_FORMAT_RGB;
    holocron_results* results = nullptr;
    REQUIRE(holocron_classify(model, &frame, 1, &results) == HOLOCRON_OK);
    CHECK(holocron_results_count(results) == 1);
    holocron_class found{};
    CHECK(holocron_results_class(results, 0, 0, &found) == HOLOCRON_OK);
    CHECK(std::string(found.label) == "green");
    CHECK(holocron_results_class(results, 0, 3, &found) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(holocron_results_class(results, 1, 0, &found) == HOLOCRON_ERROR_ARGUMENT);
    size_t count = 0;
    CHECK(holocron_results_detection_count(results, 0, &count) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(error() == "these are results of classification, not of detection");
    holocron_results_free(results);

    frame.format = 6;
    CHECK(holocron_classify(model, &frame, 1, &results) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(results == nullptr);
    frame.format = HOLOCRON_FORMAT_RGB;
    frame.memory = HOLOCRON_MEMORY_CUDA;
    CHECK(holocron_classify(model, &frame, 1, &results) == HOLOCRON_ERROR_IMAGE);
    frame.memory = 2;
    CHECK(holocron_classify(model, &frame, 1, &results) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(error() == "the frame's memory is 2, expected 0 to 1");
    frame.memory = HOLOCRON_MEMORY_HOST;
    frame.region_x = 7;
    frame.region_width = 2;
    frame.region_height = 8;
    CHECK(holocron_classify(model, &frame, 1, &results) == HOLOCRON_ERROR_IMAGE);
    frame.region_x = 0;
    CHECK(holocron_classify(model, nullptr, 1, &results) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(holocron_classify(model, nullptr, 0, &results) == HOLOCRON_OK);
    CHECK(holocron_results_count(results) == 0);
    holocron_results_free(results);
    CHECK(holocron_detect(model, &frame, 1, &results) == HOLOCRON_ERROR_ARGUMENT);

    holocron_tensors* feeds = nullptr;
    REQUIRE(holocron_feeds(model, &frame, 1, &feeds) == HOLOCRON_OK);
    holocron_tensor input{};
    REQUIRE(holocron_tensors_at(feeds, 0, &input) == HOLOCRON_OK);
    CHECK(std::string(input.name) == "input");
    holocron_tensors* outputs = nullptr;
    REQUIRE(holocron_run(model, &input, 1, &outputs) == HOLOCRON_OK);
    holocron_tensor logits{};
    REQUIRE(holocron_tensors_find(outputs, "logits", &logits) == HOLOCRON_OK);
    CHECK(static_cast<const float*>(logits.data)[1] == 1.0F);
    CHECK(holocron_tensors_find(outputs, "other", &logits) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(holocron_tensors_at(outputs, 1, &logits) == HOLOCRON_ERROR_ARGUMENT);
    holocron_tensors_free(outputs);
    const holocron_tensor twice[2] = {input, input};
    CHECK(holocron_run(model, twice, 2, &outputs) == HOLOCRON_ERROR_ARGUMENT);
    input.shape = nullptr;
    CHECK(holocron_run(model, &input, 1, &outputs) == HOLOCRON_ERROR_ARGUMENT);
    CHECK(holocron_run(model, nullptr, 0, &outputs) == HOLOCRON_ERROR_INPUT);
    holocron_tensors_free(feeds);

    CHECK(holocron_model_close(model) == HOLOCRON_OK);
    CHECK(holocron_model_close(model) == HOLOCRON_OK);
    frame.region_width = frame.region_height = 0;
    CHECK(holocron_classify(model, &frame, 1, &results) == HOLOCRON_ERROR_BACKEND);
    CHECK(error() == "the openvino session is closed: load the model again");
    holocron_model_free(model);
}
