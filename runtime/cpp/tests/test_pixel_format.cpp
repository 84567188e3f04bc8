#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "holocron/errors.hpp"
#include "holocron/frame.hpp"
#include "pixel_format.hpp"
#include "pixel_kernels.hpp"

using namespace holocron;
using namespace holocron::detail;

namespace {

std::vector<std::uint8_t> counted(std::size_t count) {
    std::vector<std::uint8_t> bytes(count);
    std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
    return bytes;
}

std::vector<std::uint8_t> packed(const Frame& frame, bool bgr = false) {
    const FrameRows rows(frame, "the frame");
    std::vector<std::uint8_t> out(static_cast<std::size_t>(rows.size().height) *
                                  static_cast<std::size_t>(rows.size().width) * 3);
    rows.pack(out.data(), bgr);
    return out;
}

std::string refusal(const Frame& frame) {
    try {
        const FrameRows rows(frame, "image 3");
    } catch (const ImageError& error) {
        return error.what();
    }
    return "taken";
}

// A valid frame, to be spoiled. Nothing is read from it where it is refused.
Frame valid(Format format) {
    static const std::vector<std::uint8_t> memory(64 * 64 * 6);
    return {memory.data(), 20, 10, 0, format};
}

}  // namespace

TEST_CASE("a frame is an aggregate of pointer, size, stride and format") {
    const auto pixels = counted(12);
    const int width = 2;
    const int height = 2;
    const int stride = 6;
    const Frame frame{pixels.data(), width, height, stride, Format::BGR};
    CHECK(packed(frame) == std::vector<std::uint8_t>{2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9});
    CHECK_FALSE(frame.region.has_value());
}

TEST_CASE("each format's channels, and alpha dropped") {
    const auto bytes = counted(8);
    const auto of = [&](Format format, int width) { return packed({bytes.data(), width, 1, 0, format}); };
    using Bytes = std::vector<std::uint8_t>;
    CHECK(of(Format::RGB, 2) == Bytes{0, 1, 2, 3, 4, 5});
    CHECK(of(Format::BGR, 2) == Bytes{2, 1, 0, 5, 4, 3});
    CHECK(of(Format::RGBA, 2) == Bytes{0, 1, 2, 4, 5, 6});
    CHECK(of(Format::BGRA, 2) == Bytes{2, 1, 0, 6, 5, 4});
    CHECK(of(Format::Gray, 2) == Bytes{0, 0, 0, 1, 1, 1});
    CHECK(packed({bytes.data(), 2, 1, 0, Format::RGBA}, true) == Bytes{2, 1, 0, 6, 5, 4});
    CHECK(packed({bytes.data(), 2, 1, 0, Format::BGR}, true) == Bytes{0, 1, 2, 3, 4, 5});
}

TEST_CASE("NV12 of black, white, grey and the primaries") {
    // Luma and chroma of the colours in BT.601 limited range, rounded to 8 bits; hence primaries that are off by a
    // level.
    const auto pixel = [](std::uint8_t y, std::uint8_t cb, std::uint8_t cr) {
        const std::vector<std::uint8_t> bytes{y, y, y, y, cb, cr};
        const auto rgb = packed({bytes.data(), 2, 2, 0, Format::NV12});
        for (std::size_t i = 3; i < 12; ++i) {
            CHECK(rgb[i] == rgb[i - 3]);
        }
        return std::vector<int>{rgb[0], rgb[1], rgb[2]};
    };
    CHECK(pixel(16, 128, 128) == std::vector<int>{0, 0, 0});
    CHECK(pixel(235, 128, 128) == std::vector<int>{255, 255, 255});
    CHECK(pixel(126, 128, 128) == std::vector<int>{128, 128, 128});
    CHECK(pixel(81, 90, 240) == std::vector<int>{254, 0, 0});
    CHECK(pixel(145, 54, 34) == std::vector<int>{0, 255, 1});
    CHECK(pixel(41, 240, 110) == std::vector<int>{0, 0, 255});
    // Below black and above white it is clipped.
    CHECK(pixel(0, 128, 128) == std::vector<int>{0, 0, 0});
    CHECK(pixel(255, 255, 255) == std::vector<int>{255, 125, 255});
}

TEST_CASE("NV12 has one chroma for four pixels, behind the luma unless it is said where") {
    const std::vector<std::uint8_t> together{50, 60, 70, 80, 90, 100, 110, 120, 128, 128, 30, 200};
    const auto expected = packed({together.data(), 4, 2, 0, Format::NV12});
    const std::vector<std::uint8_t> luma{50, 60, 70, 80, 0, 90, 100, 110, 120};
    const std::vector<std::uint8_t> chroma{128, 128, 30, 200};
    Frame apart{luma.data(), 4, 2, 5, Format::NV12};
    apart.chroma = chroma.data();
    apart.chroma_stride = 4;
    CHECK(packed(apart) == expected);
    CHECK(expected[0] == expected[1]);  // no chroma on the left
    CHECK(expected[6] != expected[7]);
    apart.region = Region{2, 0, 2, 2};
    const auto right = packed(apart);
    CHECK(std::vector<std::uint8_t>(right.begin(), right.begin() + 6) ==
          std::vector<std::uint8_t>(expected.begin() + 6, expected.begin() + 12));
}

TEST_CASE("every instruction set gives the same pixels") {
    std::mt19937 generator(1);
    std::vector<std::uint8_t> bytes(4 * 300);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::uint8_t>(generator() >> 24); });
    const PixelKernels& plain = available_pixel_kernels().back();
    for (const PixelKernels& kernels : available_pixel_kernels()) {
        for (const int width : {2, 62, 64, 66, 300}) {
            const auto count = static_cast<std::size_t>(width);
            std::vector<std::uint8_t> expected(3 * count);
            std::vector<std::uint8_t> found(3 * count);
            plain.nv12_to_rgb(bytes.data(), bytes.data() + 300, width, expected.data());
            kernels.nv12_to_rgb(bytes.data(), bytes.data() + 300, width, found.data());
            CHECK(found == expected);
            for (const int channels : {1, 3, 4}) {
                for (const bool reversed : {false, true}) {
                    for (std::size_t i = 0; i < count; ++i) {
                        for (std::size_t c = 0; c < 3; ++c) {
                            const std::size_t from = channels == 1 ? 0 : reversed ? 2 - c : c;
                            expected[3 * i + c] = bytes[static_cast<std::size_t>(channels) * i + from];
                        }
                    }
                    kernels.to_three(bytes.data(), channels, reversed, count, found.data());
                    CHECK(found == expected);
                }
            }
        }
    }
}

TEST_CASE("a stride and a region") {
    const auto pixels = counted(5 * 10);
    Frame frame{pixels.data(), 8, 5, 10, Format::Gray};
    frame.region = Region{6, 3, 2, 2};
    CHECK(packed(frame) == std::vector<std::uint8_t>{36, 36, 36, 37, 37, 37, 46, 46, 46, 47, 47, 47});
}

TEST_CASE("a frame without pixels") {
    Frame frame = valid(Format::RGB);
    frame.pixels = nullptr;
    CHECK(refusal(frame) == "image 3 has no pixels: its pointer is null");
    frame = valid(Format::RGB);
    frame.width = 0;
    CHECK(refusal(frame) == "image 3 has no pixels: its size is 0 x 10");
    frame.width = std::numeric_limits<int>::min();
    CHECK(refusal(frame) == "image 3 has no pixels: its size is -2147483648 x 10");
    CHECK(refusal(Frame{}) == "image 3 has no pixels: its size is 0 x 0");
}

TEST_CASE("a frame of an absurd size") {
    Frame frame = valid(Format::RGB);
    frame.height = std::numeric_limits<int>::max();
    CHECK(refusal(frame) == "image 3 has the size 20 x 2147483647: expected 1048576 pixels a side at most");
    frame = valid(Format::NV12);
    frame.stride = std::numeric_limits<std::ptrdiff_t>::max();
    CHECK(refusal(frame) == "image 3 has a stride of 9223372036854775807 bytes: its 10 rows do not fit into memory");
}

TEST_CASE("a stride smaller than a row") {
    Frame frame = valid(Format::BGRA);
    frame.stride = 79;
    CHECK(refusal(frame) == "image 3 has a stride of 79 bytes, and its rows have 80");
    frame.stride = -80;
    CHECK(refusal(frame) == "image 3 has a stride of -80 bytes, and its rows have 80");
    frame.stride = 80;
    CHECK(refusal(frame) == "taken");
    frame = valid(Format::NV12);
    frame.stride = 24;
    frame.chroma_stride = 19;
    CHECK(refusal(frame) == "image 3 has a chroma stride of 19 bytes, and its rows have 20");
}

TEST_CASE("a region outside") {
    Frame frame = valid(Format::RGB);
    for (const Region region :
         {Region{0, 0, 21, 10}, Region{1, 0, 20, 10}, Region{0, 1, 20, 10}, Region{-1, 0, 5, 5}, Region{0, -1, 5, 5},
          Region{0, 0, 0, 5}, Region{0, 0, 5, 0}, Region{0, 0, -5, 5}, Region{std::numeric_limits<int>::max(), 0, 5, 5},
          Region{5, 5, std::numeric_limits<int>::max(), std::numeric_limits<int>::max()}}) {
        frame.region = region;
        CHECK(refusal(frame).find("image 3 has the region of ") == 0);
    }
    frame.region = Region{19, 9, 2, 1};
    CHECK(refusal(frame) == "image 3 has the region of 2 x 1 pixels at (19, 9), which is not part of its 20 x 10");
    frame.region = Region{19, 9, 1, 1};
    CHECK(refusal(frame) == "taken");
}

TEST_CASE("NV12 with odd numbers") {
    Frame frame = valid(Format::NV12);
    frame.width = 19;
    CHECK(refusal(frame) == "image 3 is NV12 of 19 x 10 pixels: expected an even width and an even height");
    frame = valid(Format::NV12);
    frame.height = 9;
    CHECK(refusal(frame) == "image 3 is NV12 of 20 x 9 pixels: expected an even width and an even height");
    frame = valid(Format::NV12);
    frame.region = Region{1, 0, 2, 2};
    CHECK(refusal(frame) == "image 3 is NV12 with the region of 2 x 2 pixels at (1, 0): expected even numbers");
    frame.region = Region{2, 4, 2, 2};
    CHECK(refusal(frame) == "taken");
}

TEST_CASE("a format that does not exist") {
    Frame frame = valid(Format::RGB);
    frame.format = static_cast<Format>(17);
    CHECK(refusal(frame) == "image 3 has the unknown format 17: expected RGB, BGR, RGBA, BGRA, Gray or NV12");
}
