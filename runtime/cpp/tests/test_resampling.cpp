#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "filters.hpp"
#include "parallel.hpp"
#include "pixel_format.hpp"
#include "resampling.hpp"
#include "resampling_kernels.hpp"

using namespace holocron;
using namespace holocron::detail;

namespace {

constexpr std::array kFilters{Interpolation::Nearest, Interpolation::Box,     Interpolation::Bilinear,
                              Interpolation::Hamming, Interpolation::Bicubic, Interpolation::Lanczos};
constexpr std::array kWeighted{Interpolation::Box, Interpolation::Bilinear, Interpolation::Hamming,
                               Interpolation::Bicubic, Interpolation::Lanczos};

std::vector<std::uint8_t> noise(std::size_t count, unsigned seed = 1) {
    std::mt19937 generator(seed);
    std::vector<std::uint8_t> bytes(count);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::uint8_t>(generator() >> 24); });
    return bytes;
}

std::size_t area(Size size) { return static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width); }

std::vector<std::uint8_t> resized(const std::vector<std::uint8_t>& pixels, Size source, Size target,
                                  Interpolation interpolation, Format format = Format::RGB, int threads = 1) {
    const FrameRows rows({pixels.data(), source.width, source.height, 0, format}, "the frame");
    std::vector<std::uint8_t> out(area(target) * static_cast<std::size_t>(rows.channels()));
    Resampler(source, target, interpolation)(rows, out.data(), threads);
    return out;
}

// One pass along an axis of (outer, length, inner) values, in the plainest way.
std::vector<std::uint8_t> pass(const std::vector<std::uint8_t>& values, int outer, int inner, const AxisWeights& axis) {
    std::vector<std::uint8_t> out;
    for (int o = 0; o < outer; ++o) {
        for (int i = 0; i < axis.target; ++i) {
            for (int k = 0; k < inner; ++k) {
                std::int64_t sum = 1 << (kWeightBits - 1);
                for (int j = axis.first[static_cast<std::size_t>(i)]; j < axis.end(i); ++j) {
                    const std::int64_t weight = axis.of(i)[j - axis.first[static_cast<std::size_t>(i)]];
                    sum += weight * values[static_cast<std::size_t>((o * axis.source + j) * inner + k)];
                }
                out.push_back(static_cast<std::uint8_t>(std::clamp<std::int64_t>(sum >> kWeightBits, 0, 255)));
            }
        }
    }
    return out;
}

std::vector<std::uint8_t> plainly_resized(const std::vector<std::uint8_t>& pixels, Size source, Size target,
                                          Interpolation interpolation, int channels) {
    const AxisWeights rows = axis_weights(source.height, target.height, interpolation);
    const AxisWeights columns = axis_weights(source.width, target.width, interpolation);
    if (rows_first(source, target, interpolation)) {
        return pass(pass(pixels, 1, source.width * channels, rows), target.height, channels, columns);
    }
    return pass(pass(pixels, source.height, channels, columns), 1, target.width * channels, rows);
}

}  // namespace

TEST_CASE("weights add up to one and belong to pixels of the source") {
    for (const Interpolation interpolation : kWeighted) {
        for (const auto& [source, target] : {std::pair{1920, 224}, {7, 300}, {1, 5}, {5, 1}, {64, 64}, {4000, 1}}) {
            const AxisWeights axis = axis_weights(source, target, interpolation);
            REQUIRE(axis.first.size() == static_cast<std::size_t>(target));
            for (int i = 0; i < target; ++i) {
                const int first = axis.first[static_cast<std::size_t>(i)];
                CHECK(first >= 0);
                CHECK(axis.end(i) > first);
                CHECK(axis.end(i) <= source);
                CHECK(axis.end(i) - first <= axis.taps);
                const std::int64_t total = std::accumulate(axis.of(i), axis.of(i) + axis.taps, std::int64_t{0});
                CHECK(std::abs(total - (1 << kWeightBits)) <= axis.taps);
                if (i > 0) {  // what bands of rows rely on
                    CHECK(first >= axis.first[static_cast<std::size_t>(i) - 1]);
                    CHECK(axis.end(i) >= axis.end(i - 1));
                }
            }
        }
    }
}

TEST_CASE("an axis of the right length stays as it is") {
    for (const Interpolation interpolation : kWeighted) {
        const AxisWeights axis = axis_weights(9, 9, interpolation);
        for (int i = 0; i < 9; ++i) {
            for (int j = axis.first[static_cast<std::size_t>(i)]; j < axis.end(i); ++j) {
                const std::int32_t weight = axis.of(i)[j - axis.first[static_cast<std::size_t>(i)]];
                CHECK(weight == (i == j ? 1 << kWeightBits : 0));
            }
        }
    }
}

TEST_CASE("weights that are known by hand") {
    const AxisWeights halves = axis_weights(4, 2, Interpolation::Box);
    CHECK(halves.first == std::vector<int>{0, 2});
    CHECK(halves.count == std::vector<int>{2, 2});
    CHECK(halves.units == std::vector<std::int32_t>(4, 1 << (kWeightBits - 1)));
    // The triangle of a reduction by 2 has the weights 1/8, 3/8, 3/8, 1/8, and what is outside is shared out.
    const AxisWeights triangle = axis_weights(8, 4, Interpolation::Bilinear);
    CHECK(std::vector<std::int32_t>(triangle.of(1), triangle.of(1) + 4) ==
          std::vector<std::int32_t>{1 << 19, 3 << 19, 3 << 19, 1 << 19});
    CHECK(triangle.count[0] == 3);
    CHECK(triangle.of(0)[0] == static_cast<std::int32_t>(3.0 / 7.0 * (1 << kWeightBits) + 0.5));
    // In the very middle of Hamming's bell its value is 1, where the formula in single precision has a little more.
    const AxisWeights bell = axis_weights(23, 5, Interpolation::Hamming);
    const double middle = bell.of(2)[11 - bell.first[2]];
    const double next = bell.of(2)[12 - bell.first[2]];
    CHECK(next < middle);
    CHECK(nearest_pixels(4, 2) == std::vector<int>{1, 3});
    CHECK(nearest_pixels(2, 4) == std::vector<int>{0, 0, 1, 1});
}

TEST_CASE("a plain colour stays one with every filter and size") {
    const std::vector<std::uint8_t> grey(40 * 50 * 3, 137);
    for (const Interpolation interpolation : kFilters) {
        for (const Size target : {Size{7, 9}, Size{100, 3}, Size{40, 51}, Size{41, 50}, Size{1, 1}}) {
            const auto out = resized(grey, {40, 50}, target, interpolation);
            CHECK(std::all_of(out.begin(), out.end(), [](std::uint8_t v) { return v == 137; }));
        }
    }
}

TEST_CASE("the plainest loops give the same") {
    const std::array<std::pair<Size, Size>, 9> sizes{{{{33, 47}, {11, 17}},
                                                      {{5, 6}, {21, 40}},
                                                      {{40, 9}, {8, 30}},
                                                      {{100, 20}, {7, 19}},  // rows first
                                                      {{17, 33}, {17, 12}},
                                                      {{33, 17}, {12, 17}},
                                                      {{1, 64}, {64, 1}},
                                                      {{64, 1}, {1, 64}},
                                                      {{20, 20}, {20, 20}}}};
    for (const Format format : {Format::RGB, Format::BGRA, Format::Gray}) {
        const int channels = format == Format::RGB ? 3 : format == Format::Gray ? 1 : 4;
        for (const auto& [source, target] : sizes) {
            const auto pixels = noise(area(source) * static_cast<std::size_t>(channels));
            for (const Interpolation interpolation : kWeighted) {
                const auto expected = plainly_resized(pixels, source, target, interpolation, channels);
                for (const int threads : {1, 2, 7}) {
                    CHECK(resized(pixels, source, target, interpolation, format, threads) == expected);
                }
            }
        }
    }
}

TEST_CASE("the number of threads changes no pixel of a large image") {
    for (const auto& [source, target] : {std::pair{Size{700, 900}, Size{120, 130}}, {{1500, 300}, {100, 90}}}) {
        const auto pixels = noise(area(source) * 3);
        for (const Interpolation interpolation : kFilters) {
            const auto expected = resized(pixels, source, target, interpolation);
            for (const int threads : {2, 3, 8}) {
                CHECK(resized(pixels, source, target, interpolation, Format::RGB, threads) == expected);
            }
        }
    }
}

TEST_CASE("nearest takes pixels as they are") {
    const auto pixels = noise(6 * 8 * 4);
    const auto out = resized(pixels, {6, 8}, {3, 4}, Interpolation::Nearest, Format::RGBA);
    for (std::size_t y = 0; y < 3; ++y) {
        for (std::size_t x = 0; x < 4; ++x) {
            const auto* from = pixels.data() + ((2 * y + 1) * 8 + 2 * x + 1) * 4;
            CHECK(std::equal(from, from + 4, out.data() + (y * 4 + x) * 4));
        }
    }
}

TEST_CASE("which pass comes first") {
    CHECK(rows_first({1000, 20}, {10, 10}, Interpolation::Bilinear));
    CHECK(rows_first({1000, 10}, {10, 20}, Interpolation::Bilinear));
    CHECK_FALSE(rows_first({1000, 10}, {10, 10}, Interpolation::Bilinear));  // there is one pass alone
    CHECK_FALSE(rows_first({1000, 20}, {10, 10}, Interpolation::Nearest));
    CHECK_FALSE(rows_first({1080, 1920}, {224, 224}, Interpolation::Lanczos));
    CHECK_FALSE(rows_first({30, 20}, {10, 10}, Interpolation::Box));  // exactly twice as many are no more than that
}

TEST_CASE("bands put together are the whole") {
    const Size source{61, 45};
    const Size target{30, 20};
    const auto pixels = noise(area(source) * 3);
    const FrameRows rows({pixels.data(), source.width, source.height}, "the frame");
    for (const Interpolation interpolation : kFilters) {
        const auto whole = resized(pixels, source, target, interpolation);
        const Resampler resample(source, target, interpolation);
        std::vector<std::uint8_t> out(whole.size());
        const auto write = resample.bands(rows);
        for (const auto& [begin, end] : {std::pair{17, 22}, {22, 30}, {0, 1}, {1, 5}, {5, 6}, {11, 17}, {6, 11}}) {
            write(begin, end, out.data() + begin * target.width * 3);
        }
        CHECK(out == whole);
    }
}

TEST_CASE("every instruction set gives the same") {
    const auto& all = available_resampling_kernels();
    REQUIRE_FALSE(all.empty());
    const ResamplingKernels& plain = all.back();
    constexpr std::size_t block = kBlockRows;
    for (const std::size_t length :
         {std::size_t{1}, std::size_t{15}, std::size_t{63}, std::size_t{64}, std::size_t{333}}) {
        const auto pixels = noise(length * block);
        std::vector<const std::uint8_t*> rows(block);
        for (std::size_t r = 0; r < block; ++r) {
            rows[r] = pixels.data() + r * length;
        }
        const AxisWeights axis = axis_weights(static_cast<int>(length), 10, Interpolation::Lanczos);
        std::vector<std::uint8_t> expected_out(10 * block);
        std::vector<std::uint8_t> expected_row(length);
        std::vector<std::uint8_t> expected_columns(pixels.size());
        for (std::size_t i = 0; i < pixels.size(); ++i) {
            expected_columns[i] = pixels[i % block * length + i / block];
        }
        plain.horizontal(expected_columns.data(), 1, axis, expected_out.data());
        const std::vector<std::int32_t> units(block, (1 << kWeightBits) / 16);
        plain.vertical(rows.data(), units.data(), kBlockRows, length, expected_row.data());
        for (const ResamplingKernels& kernels : all) {
            std::vector<std::uint8_t> columns(pixels.size());
            kernels.to_columns(rows.data(), length, columns.data());
            CHECK(columns == expected_columns);
            std::vector<std::uint8_t> back(pixels.size());
            std::vector<std::uint8_t*> back_rows(block);
            for (std::size_t r = 0; r < block; ++r) {
                back_rows[r] = back.data() + r * length;
            }
            kernels.to_rows(columns.data(), length, back_rows.data());
            CHECK(back == pixels);
            std::vector<std::uint8_t> out(expected_out.size());
            kernels.horizontal(columns.data(), 1, axis, out.data());
            CHECK(out == expected_out);
            std::vector<std::uint8_t> row(length);
            kernels.vertical(rows.data(), units.data(), kBlockRows, length, row.data());
            CHECK(row == expected_row);
        }
    }
}

TEST_CASE("threads are started where there is work for them") {
    CHECK(useful_threads(0, 8) == 1);
    CHECK(useful_threads(1e5, 8) == 1);
    CHECK(useful_threads(1e12, 8) == 8);
    const Resampler large({1080, 1920}, {224, 224}, Interpolation::Bilinear);
    CHECK(useful_threads(large.products(3), 2) == 2);
    const Resampler small({32, 32}, {24, 24}, Interpolation::Bilinear);
    CHECK(useful_threads(small.products(3), 2) == 1);
}

TEST_CASE("ranges are covered once, by any number of threads") {
    for (const int count : {0, 1, 2, 10, 97}) {
        for (const int threads : {1, 2, 3, 200}) {
            std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
            for (const int grain : {1, 4, 1000}) {
                std::atomic<int> makers{0};
                const auto visit = [&](int begin, int end) {
                    REQUIRE(begin < end);
                    for (int i = begin; i < end; ++i) {
                        ++visits[static_cast<std::size_t>(i)];
                    }
                };
                parallel_ranges(count, threads, grain, [&] {
                    ++makers;
                    return visit;
                });
                CHECK(makers <= threads);
                CHECK(std::all_of(visits.begin(), visits.end(), [](const auto& v) { return v == 1; }));
                std::fill(visits.begin(), visits.end(), 0);
            }
        }
    }
}

TEST_CASE("several callers share the threads") {
    std::array<std::atomic<int>, 4> sums{};
    std::vector<std::thread> callers;
    for (std::atomic<int>& sum : sums) {
        callers.emplace_back([&sum] {
            for (int round = 0; round < 200; ++round) {
                parallel_ranges(10, 3, 2, [&sum] { return [&sum](int begin, int end) { sum += end - begin; }; });
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    CHECK(std::all_of(sums.begin(), sums.end(), [](const auto& sum) { return sum == 2000; }));
}

TEST_CASE("one thread does not wait for another that has not begun or is slow") {
    // One of two threads is held up at its first range until all else is done but the little that is not worth taking.
    std::atomic<int> done{0};
    std::atomic<bool> held{false};
    parallel_ranges(64, 2, 1, [&] {
        return [&](int begin, int end) {
            if (!held.exchange(true)) {
                while (done < 60) {
                    std::this_thread::yield();
                }
            }
            done += end - begin;
        };
    });
    CHECK(done == 64);
}

TEST_CASE("an error in a thread is the caller's") {
    for (const int bad : {0, 5, 9}) {
        const auto work = [bad](int begin, int end) {
            if (begin <= bad && bad < end) {
                throw std::runtime_error("no");
            }
        };
        CHECK_THROWS_WITH_AS(parallel_ranges(10, 4, 1, [&] { return work; }), "no", std::runtime_error);
    }
    const auto fail = []() -> RangeWork { throw std::runtime_error("none"); };
    CHECK_THROWS_WITH_AS(parallel_ranges(10, 4, 1, fail), "none", std::runtime_error);
    CHECK_THROWS_WITH_AS(parallel_ranges(1, 4, 1, fail), "none", std::runtime_error);
}
