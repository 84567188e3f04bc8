/// \file
/// The filters that Pillow resizes with, and the weights that they give the pixels of one axis.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "holocron/size.hpp"

namespace holocron::detail {

/// Pillow's filters. All but Nearest widen with the reduction, i.e. they are antialiased.
enum class Interpolation { Nearest, Box, Bilinear, Hamming, Bicubic, Lanczos };

/// Weights are whole numbers of units of 2 to the minus this.
inline constexpr int kWeightBits = 22;

/// What the pixels of one axis are multiplied by: for each target pixel the weights of some source pixels in a row.
struct AxisWeights {
    int source = 0;
    int target = 0;
    int taps = 0;                     ///< the most source pixels of a target pixel
    std::vector<int> first;           ///< of each target pixel, its first source pixel
    std::vector<int> count;           ///< of each target pixel, how many source pixels it has
    std::vector<std::int32_t> units;  ///< of each target pixel `taps` weights; those behind its count are 0

    [[nodiscard]] const std::int32_t* of(int pixel) const noexcept {
        return units.data() + static_cast<std::ptrdiff_t>(pixel) * taps;
    }
    /// One past the last source pixel of a target pixel.
    [[nodiscard]] int end(int pixel) const noexcept {
        const auto i = static_cast<std::size_t>(pixel);
        return first[i] + count[i];
    }
};

/// The weights of every filter but Nearest, in fixed point as Pillow rounds them.
///
/// \param source pixels of the axis, 1 at least
/// \param target pixels afterwards, 1 at least
/// \param interpolation another than Nearest
[[nodiscard]] AxisWeights axis_weights(int source, int target, Interpolation interpolation);

/// The source pixel that Nearest takes for each target pixel; -1 where rounding leads past the end, which Pillow
/// leaves black.
[[nodiscard]] std::vector<int> nearest_pixels(int source, int target);

}  // namespace holocron::detail
