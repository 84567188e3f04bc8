/// \file
/// The inner loops of reading pixels, compiled for several instruction sets; the results are the same with each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace holocron::detail {

/// What is done to each pixel of a row.
struct PixelKernels {
    /// NV12 to RGB, as FrameRows says. \param width even
    void (*nv12_to_rgb)(const std::uint8_t* luma, const std::uint8_t* chroma, int width, std::uint8_t* rgb);

    /// Pixels of 1, 3 or 4 bytes to pixels of 3. \param reversed the last of the three first
    void (*to_three)(const std::uint8_t* pixels, int channels, bool reversed, std::size_t count, std::uint8_t* out);
};

/// Those that the processor at hand runs, the fastest first; all give the same.
[[nodiscard]] const std::vector<PixelKernels>& available_pixel_kernels();

}  // namespace holocron::detail
