/// \file
/// The inner loops of resizing, compiled for several instruction sets; the results are the same with each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "filters.hpp"

namespace holocron::detail {

/// Rows that are resized side by side: as many 32-bit sums as the widest registers hold.
inline constexpr int kBlockRows = 16;

/// Weighted sums of bytes, rounded and clipped to bytes: `min(max((sum + half) >> kWeightBits, 0), 255)`.
struct ResamplingKernels {
    /// Transposes kBlockRows rows of `length` bytes into `length` columns of kBlockRows bytes.
    void (*to_columns)(const std::uint8_t* const* rows, std::size_t length, std::uint8_t* columns);

    /// The way back.
    void (*to_rows)(const std::uint8_t* columns, std::size_t length, std::uint8_t* const* rows);

    /// Resizes kBlockRows rows at once. \param columns as to_columns gives them, `channels` of them a pixel
    void (*horizontal)(const std::uint8_t* columns, int channels, const AxisWeights& axis, std::uint8_t* out);

    /// One row out of several. \param length bytes of a row
    void (*vertical)(const std::uint8_t* const* rows, const std::int32_t* units, int count, std::size_t length,
                     std::uint8_t* out);
};

/// Those that the processor at hand runs, the fastest first; all give the same.
[[nodiscard]] const std::vector<ResamplingKernels>& available_resampling_kernels();

}  // namespace holocron::detail
