#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "fake_models.hpp"

using namespace holocron;
using namespace holocron::tests;

TEST_CASE("a frame is classified") {
    const Model model = make_model(fake_network());
    const Picture red(255, 0, 51);
    const auto result = model.classify(red.frame());
    CHECK(result.label() == "red");
    CHECK(result.index(1) == 2);
    CHECK(result.size() == 3);
    CHECK(result.logits[2] == doctest::Approx(0.2));
    CHECK(result.score(0) == doctest::Approx(std::exp(1.0) / (std::exp(1.0) + std::exp(0.2) + 1.0)));
    CHECK(result.top(2).size() == 2);
    CHECK(result.top(2)[1].label == "blue");
    CHECK(result.top(9).size() == 3);
    CHECK(error_of<ArgumentError>([&] { static_cast<void>(result.label(3)); }) ==
          "the rank 3 does not exist: there are 3");
    CHECK(error_of<ArgumentError>([&] { static_cast<void>(result.top(0)); }) == "k is 0, expected 1 at least");
}

TEST_CASE("of equal scores the lower index comes first") {
    const auto result = make_model(fake_network()).classify(Picture(7, 7, 7).frame());
    CHECK(result.index(0) == 0);
    CHECK(result.index(1) == 1);
    CHECK(result.index(2) == 2);
}

TEST_CASE("many frames are answered in their order, however they are fed") {
    std::vector<Picture> pictures;
    for (int i = 0; i < 70; ++i) {
        pictures.emplace_back(static_cast<std::uint8_t>(i % 3 == 0 ? 200 : 0),
                              static_cast<std::uint8_t>(i % 3 == 1 ? 200 : 0),
                              static_cast<std::uint8_t>(i % 3 == 2 ? 200 : 0), 5 + i % 7, 4 + i % 5);
    }
    std::vector<Frame> frames;
    for (const auto& picture : pictures) {
        frames.push_back(picture.frame());
    }
    const auto manifest = tests::mean_colour_manifest(8);
    const std::vector<Model> models{make_model(manifest, fake_network()), make_model(manifest, fake_network(), 3),
                                    make_model(manifest, fake_network(std::int64_t{4}), 4)};
    for (const auto& model : models) {
        const auto results = model.classify(frames);
        REQUIRE(results.size() == frames.size());
        for (std::size_t i = 0; i < results.size(); ++i) {
            CHECK(results[i].index() == static_cast<int>(i % 3));
        }
        const auto outputs = model.run(frames);
        REQUIRE(outputs.at("logits").shape() == Shape{70, 3});
        CHECK(outputs.at("logits").elements<float>()[3 * 69] == results[69].logits[0]);
        CHECK(model.classify(std::vector<Frame>{}).empty());
        CHECK(model.run(std::vector<Frame>{}).empty());
    }
}

TEST_CASE("feeds are what the network takes") {
    const Model model = make_model(fake_network());
    const Picture red(255, 0, 0, 3, 5);
    const auto feeds = model.feeds({red.frame(), red.frame()});
    REQUIRE(feeds.at("input").shape() == Shape{2, 3, 8, 8});
    const auto outputs = model.run({{"input", feeds.at("input").view()}});
    CHECK(outputs.at("logits").elements<float>()[0] == 1.0F);
    CHECK(error_of<ImageError>([&] { static_cast<void>(model.feeds({})); }) ==
          "there are no images to feed to the network: give one at least");
}

TEST_CASE("tensors that do not fit are refused") {
    const Model model = make_model(fake_network());
    const auto run = [&](const TensorViews& inputs) {
        return error_of<InputError>([&] { static_cast<void>(model.run(inputs)); });
    };
    std::vector<float> values(3 * 8 * 8, 0.5F);
    const TensorView good(values.data(), {1, 3, 8, 8});
    CHECK(run({}) == "the input 'input' is missing: the network takes 'input'");
    CHECK(run({{"input", good}, {"other", good}}) == "the network has no input 'other': it takes 'input'");
    CHECK(run({{"input", TensorView(values.data(), {1, 3, 8, 7})}}) ==
          "the input 'input' has the shape (1, 3, 8, 7): expected (batch, 3, 8, 8), each 1 at least");
    CHECK(run({{"input", TensorView(values.data(), {0, 3, 8, 8})}}) ==
          "the input 'input' has the shape (0, 3, 8, 8): expected (batch, 3, 8, 8), each 1 at least");
    CHECK(run({{"input", TensorView(values.data(), ElementType::Int32, {1, 3, 8, 8})}}) ==
          "the input 'input' is int32: expected float32");
    CHECK(run({{"input", TensorView(static_cast<const float*>(nullptr), {1, 3, 8, 8})}}) ==
          "the input 'input' has no data: its pointer is null");
    CHECK(run({{"input", TensorView(values.data(), {1, 3, 8, 8}, Memory::Cuda)}}) ==
          "the input 'input' lies in the GPU's memory, which the network on fake does not take: copy it to the host "
          "first");
    const auto huge = std::numeric_limits<std::int64_t>::max() / 2;
    CHECK(run({{"input", TensorView(values.data(), {huge, 3, 8, 8})}}) ==
          "a shape has more elements than a tensor can have");
    values[5] = std::numeric_limits<float>::quiet_NaN();
    values[7] = values[9] = -std::numeric_limits<float>::infinity();
    CHECK(run({{"input", good}}) == "the input 'input' has 1 NaN and 2 infinite: every value must be finite");
}

TEST_CASE("frames that are none are refused, and the model goes on") {
    const auto network = fake_network();
    const Model model = make_model(network);
    const Picture red(255, 0, 0);
    Frame bad = red.frame();
    bad.width = 0;
    CHECK_THROWS_AS(static_cast<void>(model.classify(bad)), ImageError);
    bad = red.frame();
    bad.pixels = nullptr;
    CHECK_THROWS_AS(static_cast<void>(model.classify(bad)), ImageError);
    bad = red.frame();
    bad.stride = 5;
    CHECK_THROWS_AS(static_cast<void>(model.classify(bad)), ImageError);
    CHECK(model.classify(red.frame()).label() == "red");
    CHECK(network->created == 1);
}

TEST_CASE("a call that does not fit the model is told") {
    const Model model = make_model(fake_network());
    const Picture red(255, 0, 0);
    CHECK(error_of<ArgumentError>([&] { static_cast<void>(model.detect(red.frame())); }) ==
          "mean_colour is a model of classification: detect is for detection");
    CHECK_THROWS_AS(static_cast<void>(model.segment(red.frame())), ArgumentError);
}

TEST_CASE("warming up runs the network twice on one frame, of a size that it takes") {
    std::vector<Shape> shapes;
    const auto counting =
        std::make_shared<FakeExecutable>(image_input(), logits_output(), [&shapes](const std::vector<Tensor>& inputs) {
            shapes.push_back(inputs[0].shape());
            return mean_colour(inputs);
        });
    make_model(counting).warm_up();
    make_model(counting).warm_up({480, 640});
    CHECK(shapes == std::vector<Shape>(4, Shape{1, 3, 8, 8}));

    auto manifest = tests::mean_colour_manifest(8);
    const std::vector<TensorSpec> frame_inputs{
        {"frame",
         ElementType::UInt8,
         {std::string("batch"), std::string("height"), std::string("width"), std::int64_t{3}}},
        {"rows", ElementType::Float32, {std::string("batch"), std::int64_t{8}, std::string("height")}},
        {"columns", ElementType::Float32, {std::string("batch"), std::string("width"), std::int64_t{8}}}};
    manifest["frame"] = {{"channels", "bgr"}, {"size", {40, 60}}, {"fixed", false}};
    manifest["inputs"] = {{{"name", "frame"}, {"dtype", "uint8"}, {"shape", {"batch", "height", "width", 3}}},
                          {{"name", "rows"}, {"dtype", "float32"}, {"shape", {"batch", 8, "height"}}},
                          {{"name", "columns"}, {"dtype", "float32"}, {"shape", {"batch", "width", 8}}}};
    shapes.clear();
    const auto frames =
        std::make_shared<FakeExecutable>(frame_inputs, logits_output(), [&shapes](const std::vector<Tensor>& inputs) {
            shapes.push_back(inputs[0].shape());
            return std::vector<Tensor>{tensor_of({1, 3}, {0.F, 1.F, 2.F})};
        });
    const Model model = make_model(manifest, frames);
    model.warm_up();
    model.warm_up({20, 30});
    CHECK(shapes == std::vector<Shape>{{1, 40, 60, 3}, {1, 40, 60, 3}, {1, 20, 30, 3}, {1, 20, 30, 3}});
    for (const Size wrong : {Size{41, 60}, Size{40, 1 << 30}, Size{0, 5}, Size{-1, 5}}) {
        CHECK_THROWS_AS(model.warm_up(wrong), ImageError);
    }
    model.close();
    CHECK_THROWS_AS(model.warm_up(), BackendError);
}

TEST_CASE("answers that are not finite are errors") {
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        const auto network = std::make_shared<FakeExecutable>(
            image_input(), logits_output(), [value](const std::vector<Tensor>& /*inputs*/) {
                return std::vector<Tensor>{tensor_of({1, 3}, {0.F, value, 1.F})};
            });
        CHECK(error_of<BackendError>([&] {
                  static_cast<void>(make_model(network).classify(Picture(1, 2, 3).frame()));
              }) == "the network answered with NaN or infinite values in fp32 on fake: choose another precision");
    }
}

TEST_CASE("a network that is not the manifest's is refused") {
    const auto manifest = tests::mean_colour_manifest(8);
    const auto refusal = [&](std::vector<TensorSpec> inputs, std::vector<TensorSpec> outputs) {
        return error_of<BundleError>([&] {
            static_cast<void>(make_model(
                manifest, std::make_shared<FakeExecutable>(std::move(inputs), std::move(outputs), mean_colour)));
        });
    };
    auto inputs = image_input();
    inputs[0].name = "other";
    CHECK(refusal(inputs, logits_output()) ==
          "mean_colour: the manifest says 'input' of float32, the network has 'other' of float32; export the model "
          "again");
    inputs = image_input();
    inputs[0].shape[2] = std::int64_t{9};
    CHECK(refusal(inputs, logits_output()) ==
          "mean_colour: the network takes ('batch', 3, 9, 8), preprocessing gives (3, 8, 8); export the model again");
    auto outputs = logits_output();
    outputs[0].shape[1] = std::int64_t{4};
    CHECK(refusal(image_input(), outputs) ==
          "mean_colour: the manifest says 'logits' of ('batch', 3), the network has ('batch', 4); export the model "
          "again");
    outputs[0].name = "x";
    CHECK(refusal(image_input(), outputs) ==
          "mean_colour: the manifest says the outputs 'logits', the network has 'x'; export the model again");
    auto wrong = manifest;
    wrong["labels"].push_back("four");
    CHECK(error_of<BundleError>([&] { static_cast<void>(make_model(wrong, fake_network())); }) ==
          "mean_colour: 4 labels do not fit a network that answers ('batch', 3) where classification has (batch, "
          "classes); export the model again");
}
