#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "holocron/errors.hpp"
#include "preprocessing.hpp"
#include "resize_matrices.hpp"
#include "size_cache.hpp"

using namespace holocron;
using namespace holocron::detail;

namespace {

Preprocessing make(Size size, ResizeMode resize = ResizeMode::Squish, PadMode mode = PadMode::Constant) {
    Preprocessing preprocessing;
    preprocessing.size = size;
    preprocessing.mean = {0.485, 0.456, 0.406};
    preprocessing.std = {0.229, 0.224, 0.225};
    preprocessing.resize = resize;
    preprocessing.pad_mode = mode;
    return preprocessing;
}

std::vector<std::uint8_t> counted(std::size_t count) {
    std::vector<std::uint8_t> bytes(count);
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
    return bytes;
}

std::vector<float> preprocessed(const Preprocessor& preprocess, const Frame& frame, int threads = 1) {
    std::vector<float> out(preprocess.value_count());
    preprocess(frame, out.data(), threads, "the frame");
    return out;
}

}  // namespace

TEST_CASE("an image of the right size is normalized and laid out in planes") {
    const Preprocessor preprocess(make({2, 3}));
    CHECK(preprocess.value_count() == 18);
    const auto pixels = counted(18);
    const auto out = preprocessed(preprocess, {pixels.data(), 3, 2, 0, Format::BGR});
    const std::array<float, 3> mean{0.485F, 0.456F, 0.406F};
    const std::array<float, 3> std{0.229F, 0.224F, 0.225F};
    for (std::size_t c = 0; c < 3; ++c) {
        for (std::size_t i = 0; i < 6; ++i) {
            volatile float value = static_cast<float>(pixels[3 * i + 2 - c]) / 255.0F;  // each step rounded
            value = value - mean[c];
            value = value / std[c];
            CHECK(out[c * 6 + i] == value);
        }
    }
}

TEST_CASE("where an image lies when the aspect ratio stays") {
    const auto box = [](Size image, Size size) { return padded_box(image, make(size, ResizeMode::Pad)); };
    CHECK(box({1080, 1920}, {224, 224}).size == Size{126, 224});
    CHECK(box({1080, 1920}, {224, 224}).top == 49);
    CHECK(box({1080, 1920}, {224, 224}).left == 0);
    CHECK(box({10, 3}, {15, 40}).size == Size{15, 5});  // 4.5, rounded half up
    CHECK(box({10, 3}, {15, 40}).left == 17);
    CHECK(box({kMaxPixelsASide, 1}, {32768, 32768}).size == Size{32768, 1});
    CHECK(box({1, kMaxPixelsASide}, {32768, 32768}).size == Size{1, 32768});
    CHECK(padded_box({1080, 1920}, make({224, 320})).size == Size{224, 320});
}

TEST_CASE("what padding shows") {
    using Places = std::vector<int>;
    CHECK(padded_axis(2, 3, 8, PadMode::Constant) == Places{-1, -1, 0, 1, 2, -1, -1, -1});
    CHECK(padded_axis(2, 3, 8, PadMode::Edge) == Places{0, 0, 0, 1, 2, 2, 2, 2});
    CHECK(padded_axis(2, 3, 8, PadMode::Reflect) == Places{2, 1, 0, 1, 2, 1, 0, 1});
    CHECK(padded_axis(2, 3, 8, PadMode::Symmetric) == Places{1, 0, 0, 1, 2, 2, 1, 0});
    CHECK(padded_axis(5, 2, 9, PadMode::Reflect) == Places{1, 0, 1, 0, 1, 0, 1, 0, 1});
    CHECK(padded_axis(5, 2, 9, PadMode::Symmetric) == Places{0, 0, 1, 1, 0, 0, 1, 1, 0});
    CHECK(padded_axis(2, 1, 4, PadMode::Reflect) == Places{0, 0, 0, 0});
}

TEST_CASE("padding beside, above and below an image") {
    const std::array<float, 3> black{(0.0F - 0.485F) / 0.229F, (0.0F - 0.456F) / 0.224F, (0.0F - 0.406F) / 0.225F};
    const std::vector<std::uint8_t> white(4 * 4 * 3, 255);
    for (const Size size : {Size{4, 6}, Size{6, 4}}) {
        const Preprocessor preprocess(make(size, ResizeMode::Pad));
        const auto out = preprocessed(preprocess, {white.data(), 4, 4});
        for (std::size_t c = 0; c < 3; ++c) {
            for (int y = 0; y < size.height; ++y) {
                for (int x = 0; x < size.width; ++x) {
                    const bool inside = size.width == 6 ? x >= 1 && x < 5 : y >= 1 && y < 5;
                    const float value = out[c * 24 + static_cast<std::size_t>(y * size.width + x)];
                    CHECK((value == black[c]) == !inside);
                }
            }
        }
    }
}

TEST_CASE("the number of threads changes nothing") {
    const auto pixels = counted(900 * 1200 * 3);
    for (const PadMode mode : {PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Symmetric}) {
        const Preprocessor preprocess(make({224, 224}, ResizeMode::Pad, mode));
        const Frame frame{pixels.data(), 1200, 900};
        CHECK(preprocessed(preprocess, frame, 1) == preprocessed(preprocess, frame, 4));
    }
}

TEST_CASE("threads share a preprocessor, with frames of many sizes") {
    const Preprocessor preprocess(make({24, 24}, ResizeMode::Pad, PadMode::Edge));
    const auto pixels = counted(64 * 64 * 3);
    std::vector<std::vector<float>> expected;
    for (int size = 1; size <= 40; ++size) {
        expected.push_back(preprocessed(Preprocessor(preprocess.preprocessing()), {pixels.data(), size, 41 - size}));
    }
    std::array<int, 4> wrong{};
    std::vector<std::thread> threads;
    for (int& mistakes : wrong) {
        threads.emplace_back([&] {
            for (int round = 0; round < 3; ++round) {
                for (int size = 1; size <= 40; ++size) {
                    const auto found = preprocessed(preprocess, {pixels.data(), size, 41 - size}, 2);
                    mistakes += found != expected[static_cast<std::size_t>(size) - 1] ? 1 : 0;
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(wrong == std::array<int, 4>{});
}

TEST_CASE("a frame that cannot be taken is named") {
    const Preprocessor preprocess(make({4, 4}));
    std::vector<float> out(preprocess.value_count());
    CHECK_THROWS_WITH_AS(preprocess(Frame{}, out.data(), 1, "image 7"), "image 7 has no pixels: its size is 0 x 0",
                         ImageError);
}

TEST_CASE("the latest sizes are remembered, the one used longest ago is forgotten") {
    const SizeCache<int> cache;
    int made = 0;
    const auto get = [&](int i) { return *cache.get({i, i}, [&] { return ++made; }); };
    for (int i = 1; i <= 8; ++i) {
        CHECK(get(i) == i);
    }
    CHECK(get(1) == 1);
    CHECK(get(9) == 9);
    CHECK(get(1) == 1);
    CHECK(get(2) == 10);
}

TEST_CASE("an image multiplied by its matrices is the image resized") {
    const Size source{9, 14};
    const Preprocessing preprocessing = make({6, 5}, ResizeMode::Pad, PadMode::Symmetric);
    const ResizeMatrices matrices = resize_matrices(source, preprocessing);
    REQUIRE(matrices.rows.size() == 6 * 9);
    REQUIRE(matrices.columns.size() == 14 * 5);
    REQUIRE_FALSE(needs_rows_first(source, preprocessing));
    const auto grey = counted(9 * 14);
    const auto rounded = [](double sum) { return std::min(std::max(std::floor(sum + 0.5), 0.0), 255.0); };
    const auto out = preprocessed(Preprocessor(preprocessing), {grey.data(), 14, 9, 0, Format::Gray});
    for (std::size_t y = 0; y < 6; ++y) {
        for (std::size_t x = 0; x < 5; ++x) {
            double sum = 0;
            for (std::size_t j = 0; j < 9; ++j) {
                double across = 0;
                for (std::size_t i = 0; i < 14; ++i) {
                    across += double{matrices.columns[i * 5 + x]} * grey[j * 14 + i];
                }
                sum += double{matrices.rows[y * 9 + j]} * rounded(across);
            }
            const float unit = static_cast<float>(rounded(sum)) / 255.0F;
            CHECK(out[y * 5 + x] == (unit - 0.485F) / 0.229F);
        }
    }
}

TEST_CASE("matrices for an image whose rows were resized already") {
    const Preprocessing preprocessing = make({6, 5});
    REQUIRE(needs_rows_first({90, 7}, preprocessing));
    CHECK(rows_done({90, 7}, preprocessing) == Size{6, 7});
    const ResizeMatrices left = resize_matrices_after_rows({90, 7}, preprocessing);
    CHECK(left.source == Size{6, 7});
    CHECK(left.target == Size{6, 5});
    for (std::size_t i = 0; i < 36; ++i) {
        CHECK(left.rows[i] == (i % 7 == 0 ? 1.0F : 0.0F));
    }
    CHECK(left.columns == resize_matrices({90, 7}, preprocessing).columns);
}
