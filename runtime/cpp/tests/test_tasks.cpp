#include <doctest/doctest.h>

#include "fake_models.hpp"

using namespace holocron;
using namespace holocron::tests;
using nlohmann::json;

namespace {

json detector_manifest() {
    auto manifest = tests::mean_colour_manifest(8);
    manifest["task"] = "detection";
    manifest["outputs"] = {{{"name", "boxes"}, {"dtype", "float32"}, {"shape", {"batch", 3, 4}}},
                           {{"name", "scores"}, {"dtype", "float32"}, {"shape", {"batch", 3}}},
                           {{"name", "labels"}, {"dtype", "int32"}, {"shape", {"batch", 3}}},
                           {{"name", "count"}, {"dtype", "int32"}, {"shape", {"batch"}}},
                           {{"name", "status"}, {"dtype", "int32"}, {"shape", {"batch"}}}};
    manifest["post_processing"] = {{"kind", "detections"}, {"score_threshold", 0.25}, {"iou_threshold", 0.5},
                                   {"max_detections", 3},  {"candidates", 3},         {"steps", 4}};
    return manifest;
}

Model detector(std::int32_t count, std::int32_t status, std::int32_t label = 2, json manifest = detector_manifest()) {
    std::vector<TensorSpec> outputs{
        {"boxes", ElementType::Float32, {std::string("batch"), std::int64_t{3}, std::int64_t{4}}},
        {"scores", ElementType::Float32, {std::string("batch"), std::int64_t{3}}},
        {"labels", ElementType::Int32, {std::string("batch"), std::int64_t{3}}},
        {"count", ElementType::Int32, {std::string("batch")}},
        {"status", ElementType::Int32, {std::string("batch")}}};
    return make_model(
        manifest, std::make_shared<FakeExecutable>(image_input(), outputs, [=](const std::vector<Tensor>& /*inputs*/) {
            return std::vector<Tensor>{
                tensor_of({1, 3, 4}, {0.F, 2.F, 4.F, 8.F, 1.F, 1.F, 1.F, 5.F, 0.F, 0.F, 0.F, 0.F}),
                tensor_of({1, 3}, {0.75F, 0.5F, 0.F}), tensor_of({1, 3}, {label, 0, -1}), tensor_of({1}, {count}),
                tensor_of({1}, {status})};
        }));
}

json segmenter_manifest() {
    auto manifest = tests::mean_colour_manifest(8);
    manifest["task"] = "segmentation";
    manifest["preprocessing"]["resize"] = "pad";
    manifest["outputs"] = {{{"name", "logits"}, {"dtype", "float32"}, {"shape", {"batch", 3, 4, 4}}}};
    return manifest;
}

}  // namespace

TEST_CASE("objects are found in pixels of the frame") {
    const Picture wide(0, 0, 0, 16, 4);
    const auto found = detector(2, 0).detect(wide.frame());
    REQUIRE(found.size() == 1);  // the other has no width
    CHECK(found[0].box.xmin == 0.F);
    CHECK(found[0].box.xmax == 8.F);  // 4 of 8 pixels of the input, of 16 of the frame
    CHECK(found[0].box.ymin == 1.F);
    CHECK(found[0].box.ymax == 4.F);
    CHECK(found[0].score == 0.75F);
    CHECK(found.label(0) == "blue");
    CHECK(found.frame_size == Size{4, 16});
    CHECK(found.remarks().empty());
    CHECK(detector(2, 3).detect(wide.frame()).remarks().size() == 2);
    CHECK_THROWS_AS(static_cast<void>(found[1]), ArgumentError);
}

TEST_CASE("padding is undone for boxes") {
    auto manifest = detector_manifest();
    manifest["preprocessing"]["resize"] = "pad";
    // 16 × 4 becomes 8 × 2 in rows 3 and 4 of the input: 2 to 8 is cut to all of the frame's height.
    const auto found = detector(2, 0, 2, manifest).detect(Picture(0, 0, 0, 16, 4).frame());
    REQUIRE(found.size() == 1);
    CHECK(found[0].box.ymin == 0.F);
    CHECK(found[0].box.ymax == 4.F);
    CHECK(found[0].box.xmax == 8.F);
}

TEST_CASE("answers of a detector that make no sense are refused") {
    const Picture black(0, 0, 0);
    CHECK(error_of<BundleError>([&] { static_cast<void>(detector(4, 0).detect(black.frame())); }) ==
          "mean_colour: the network says 4 boxes of 3");
    CHECK(error_of<BundleError>([&] { static_cast<void>(detector(1, 0, 3).detect(black.frame())); }) ==
          "mean_colour: the network answered the class 3 of 3; export the model again");
    CHECK(error_of<BackendError>([&] { static_cast<void>(detector(1, 8).detect(black.frame())); }) ==
          "the network answered with NaN or infinite values, of which nothing was made: choose another precision");
}

TEST_CASE("raw heads are no boxes") {
    auto manifest = tests::mean_colour_manifest(8);
    manifest["task"] = "detection";
    const Model model = make_model(manifest, fake_network());
    CHECK(error_of<BundleError>([&] { static_cast<void>(model.detect(Picture(1, 1, 1).frame())); }) ==
          "mean_colour gives the raw output of its detection head ('logits'), not boxes: take the arrays with "
          "Model::run and decode them as the architecture asks, or export it without --raw");
    CHECK(model.run(Picture(1, 1, 1).frame()).count("logits") == 1);
}

TEST_CASE("a class is found for each pixel of the frame") {
    // The upper half of the cells is of class 2, the lower of class 1; the frame of 4 × 16 lies in rows 3 and 4 of 8.
    const auto network = std::make_shared<FakeExecutable>(
        image_input(),
        std::vector<TensorSpec>{{"logits",
                                 ElementType::Float32,
                                 {std::string("batch"), std::int64_t{3}, std::int64_t{4}, std::int64_t{4}}}},
        [](const std::vector<Tensor>& /*inputs*/) {
            Tensor logits(ElementType::Float32, {1, 3, 4, 4});
            for (int i = 0; i < 16; ++i) {
                logits.elements<float>()[(i < 8 ? 2 : 1) * 16 + i] = 1.F;
            }
            return std::vector<Tensor>{logits};
        });
    const Model model = make_model(segmenter_manifest(), network);
    const auto answer = model.segment(Picture(0, 0, 0, 16, 4).frame());
    CHECK(answer.class_map.size == Size{4, 4});
    CHECK(answer.class_map.at(0, 0) == 2);
    CHECK(answer.class_map.at(3, 3) == 1);
    const auto pixels = answer.resized();
    REQUIRE(pixels.size == Size{4, 16});
    CHECK(pixels.at(1, 5) == 2);
    CHECK(pixels.at(2, 5) == 1);
    const auto regions = answer.regions();
    REQUIRE(regions.size() == 2);
    CHECK(regions[0].index == 1);  // of equal shares the lower index first
    CHECK(regions[0].share == 0.5);
    CHECK(answer.regions(1).size() == 1);
}
