#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "convert.hpp"
#include "engines.hpp"
#include "holocron/nms.hpp"

using namespace holocron;

TEST_CASE("greedy suppression keeps the best of each class") {
    const std::vector<Box> boxes{{0, 0, 10, 10}, {1, 1, 11, 11}, {20, 20, 30, 30}, {0, 0, 10, 10}};
    CHECK(nms(boxes, {0.5F, 0.9F, 0.1F, 0.4F}, {0, 0, 0, 1}, 0.5) == std::vector<std::size_t>{1, 3, 2});
    CHECK(nms(boxes, {0.5F, 0.5F, 0.5F, 0.5F}, {0, 0, 0, 0}, 0.5) == std::vector<std::size_t>{0, 2});
    CHECK(nms(boxes, {0.5F, 0.9F, 0.1F, 0.4F}, {0, 0, 0, 0}, 1.0) == std::vector<std::size_t>{1, 0, 3, 2});
    CHECK(nms({}, {}, {}).empty());
    // A box without extent has an IoU of 0 / 0 with itself, which is above nothing.
    CHECK(nms({{0, 0, 0, 0}, {0, 0, 0, 0}}, {1, 1}, {0, 0}, 0.0).size() == 2);
    CHECK_THROWS_AS(static_cast<void>(nms(boxes, {1}, {1})), ArgumentError);
    CHECK_THROWS_AS(static_cast<void>(nms({}, {}, {}, 1.5)), ArgumentError);
    CHECK_THROWS_AS(static_cast<void>(nms({}, {}, {}, std::nan(""))), ArgumentError);
}

TEST_CASE("detections are selected, and what is missing is told") {
    const std::vector<Box> boxes{{0, 0, 10, 10}, {20, 0, 30, 10}, {40, 0, 50, 10}, {5, 5, 5, 9}};
    const std::vector<float> scores{0.3F, 0.6F, 0.9F, 0.1F, 0.2F, 0.1F, 0.9F, 0.9F};
    SelectionLimits limits;
    auto found = select_detections(boxes, scores, 2, limits);
    REQUIRE(found.objects.size() == 2);
    CHECK(found.objects[0].score == 0.9F);
    CHECK(found.objects[0].index == 0);
    CHECK(found.objects[1].index == 1);
    CHECK(found.status == 0);
    limits.max_detections = 1;
    found = select_detections(boxes, scores, 2, limits);
    CHECK(found.objects.size() == 1);
    CHECK(found.status == kTruncated);
    limits = {};
    limits.candidates = limits.max_detections = 100;
    std::vector<Box> many(200, Box{0, 0, 10, 10});
    found = select_detections(many, std::vector<float>(200, 0.5F), 1, limits);
    CHECK(found.objects.size() == 1);
    CHECK(found.status == kTooManyCandidates);
    many[0].xmin = std::numeric_limits<float>::infinity();
    CHECK((select_detections(many, std::vector<float>(200, 0.5F), 1).status & kNotFinite) != 0);
    CHECK_THROWS_AS(static_cast<void>(select_detections(boxes, scores, 0)), ArgumentError);
    CHECK_THROWS_AS(static_cast<void>(select_detections(boxes, scores, 3)), ArgumentError);
    limits.candidates = 1;
    CHECK_THROWS_AS(static_cast<void>(select_detections(boxes, scores, 2, limits)), ArgumentError);
}

TEST_CASE("every float16 goes to float32 and back") {
    for (unsigned bits = 0; bits <= 0xFFFF; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        const float value = detail::half_to_float(half);
        if (std::isnan(value)) {
            REQUIRE(std::isnan(detail::half_to_float(detail::float_to_half(value))));
        } else {
            REQUIRE(detail::float_to_half(value) == half);
        }
    }
    CHECK(detail::half_to_float(0x3C00) == 1.0F);
    CHECK(detail::half_to_float(0x0001) == std::ldexp(1.0F, -24));
    CHECK(detail::half_to_float(0x7C00) == std::numeric_limits<float>::infinity());
    CHECK(detail::float_to_half(65519.0F) == 0x7BFF);
    CHECK(detail::float_to_half(65520.0F) == 0x7C00);
    CHECK(detail::float_to_half(1.0F + 1.0F / 2048.0F) == 0x3C00);  // half way: to the even one
    CHECK(detail::float_to_half(1.0F + 3.0F / 2048.0F) == 0x3C02);
}

TEST_CASE("an engine is for its library's version and its GPU") {
    detail::EngineInfo info;
    info.library = "tensorrt";
    info.version = "10.3.0";
    info.compute_capability = "8.7";
    const auto fits = [&](const char* version, std::optional<std::string> capability) {
        return detail::engine_problem(info, {version, std::move(capability)}).empty();
    };
    CHECK(fits("10.3.0", "8.7"));
    CHECK(fits("10.3.0.26", "8.7"));
    CHECK_FALSE(fits("10.3.1", "8.7"));
    CHECK_FALSE(fits("10.3.0", "8.6"));
    CHECK_FALSE(fits("10.3.0", std::nullopt));
    info.version_compatible = true;
    CHECK(fits("10.16.1", "8.7"));
    CHECK_FALSE(fits("10.2.9", "8.7"));
    CHECK_FALSE(fits("11.0.0", "8.7"));
    info.hardware_compatibility = detail::HardwareCompatibility::AmperePlus;
    CHECK(fits("10.3.0", "12.0"));
    CHECK_FALSE(fits("10.3.0", "7.5"));
    CHECK(detail::engine_problem(info, {"11.0.0", std::nullopt}) ==
          "was built with TensorRT 10.3.0 for compute capability 8.7, here are TensorRT 11.0.0 and an unknown GPU");
}

TEST_CASE("objects have names and extents") {
    Detections found;
    found.labels = std::make_shared<const std::vector<std::string>>(std::vector<std::string>{"cat", "dog"});
    found.objects = {{{10, 20, 40, 25}, 0.5F, 1}, {{}, 0.25F, 7}};
    CHECK(found.label(0) == "dog");
    CHECK(found.label(found.objects[0]) == "dog");
    CHECK(found[0].box.width() == 30);
    CHECK(found[0].box.height() == 5);
    CHECK_THROWS_AS(static_cast<void>(found.label(1)), ArgumentError);
    CHECK_THROWS_AS(static_cast<void>(found.label(2)), ArgumentError);
}
