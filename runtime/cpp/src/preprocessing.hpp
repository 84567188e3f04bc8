/// \file
/// From a frame to a network's input: resized, padded and normalized as the Python runtime does it, to the bit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "filters.hpp"
#include "holocron/frame.hpp"
#include "parallel.hpp"
#include "resampling.hpp"
#include "size_cache.hpp"

namespace holocron::detail {

/// What resizing does to the aspect ratio.
enum class ResizeMode {
    Squish,  ///< it changes
    Pad,     ///< it stays, and the rest is filled, the image in the middle
};

/// What padding shows.
enum class PadMode {
    Constant,   ///< black
    Edge,       ///< the nearest pixel of the image
    Reflect,    ///< the image mirrored about its outermost pixels, which are not repeated
    Symmetric,  ///< the image mirrored about its edges
};

/// How an image becomes the network's input: `preprocessing` of a manifest.
struct Preprocessing {
    Size size;                                 ///< of the input
    std::array<double, 3> mean{};              ///< red, green, blue; in units of 1, not 255
    std::array<double, 3> std{1.0, 1.0, 1.0};  ///< red, green, blue; in units of 1, not 255
    ResizeMode resize = ResizeMode::Squish;
    PadMode pad_mode = PadMode::Constant;
    Interpolation interpolation = Interpolation::Bilinear;
};

/// Where an image lies in the network's input after resizing, in pixels of that input.
struct PaddedBox {
    int top = 0;
    int left = 0;
    Size size;
};

/// Where an image of a size lies after resizing and, with ResizeMode::Pad, padding.
[[nodiscard]] PaddedBox padded_box(Size image, const Preprocessing& preprocessing) noexcept;

/// For each pixel of one axis of the input, the pixel of the resized image that is shown there.
///
/// \param before pixels of padding in front of the image
/// \param inner pixels of the image, 1 at least
/// \param length pixels of the input
/// \returns indices from 0 to inner - 1, or -1 for black
[[nodiscard]] std::vector<int> padded_axis(int before, int inner, int length, PadMode mode);

/// Turns frames into the network's input. Threads may share one.
class Preprocessor {
 public:
    /// \param preprocessing of a manifest: its numbers are finite, and no standard deviation is 0
    explicit Preprocessor(const Preprocessing& preprocessing);

    [[nodiscard]] const Preprocessing& preprocessing() const noexcept { return preprocessing_; }

    /// Number of values of one image in the input.
    [[nodiscard]] std::size_t value_count() const noexcept;

    /// Resize, pad and normalize one frame.
    ///
    /// \param frame of any format
    /// \param out value_count() values, written as all of red, all of green, all of blue
    /// \param threads the most to use, 1 at least; the values do not depend on it
    /// \param name what to call the frame in an error
    /// \throws ImageError if it is not a frame that can be taken
    void operator()(const Frame& frame, float* out, int threads, const std::string& name) const;

 private:
    [[nodiscard]] RangeWork row_writer(const FrameRows& rows, const Resampler* resample, PaddedBox box,
                                       float* out) const;
    void write_row(const FrameRows& rows, const std::uint8_t* pixels, PaddedBox box, int y, float* out) const;
    void pad_columns(float* row, PaddedBox box, std::size_t channel) const;
    void pad_rows(float* plane, PaddedBox box, std::size_t channel) const;

    Preprocessing preprocessing_;
    std::array<std::array<float, 256>, 3> normalized_{};  // of each channel, what each of its 256 values becomes
    SizeCache<Resampler> resamplers_;                     // to the size before padding
};

}  // namespace holocron::detail
