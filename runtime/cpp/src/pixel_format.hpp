/// \file
/// Reading the pixels of a frame, whatever its format.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "filters.hpp"
#include "holocron/frame.hpp"

namespace holocron::detail {

/// The most pixels a side that a frame may have: more is a mistake, and less than this leaves room in the arithmetic.
inline constexpr int kMaxPixelsASide = 1 << 20;

/// The rows of a frame, or of its region, as pixels of one, three or four interleaved bytes.
///
/// NV12 is converted as ITU-R BT.601 says for 8 bits in limited range, with the chroma of 2 × 2 pixels for all four:
///
///     r = 85/73·(Y - 16) + 255/224·1.402·(Cr - 128)
///     g = 85/73·(Y - 16) - 255/224·1.772·0.114/0.587·(Cb - 128) - 255/224·1.402·0.299/0.587·(Cr - 128)
///     b = 85/73·(Y - 16) + 255/224·1.772·(Cb - 128)
///
/// each rounded half up and clipped to 0 … 255. The factors are rounded to multiples of 2⁻²⁰, so that it is done in
/// integers and is the same on every machine.
class FrameRows {
 public:
    /// \param frame whose pixels must stay where they are as long as this is used
    /// \param name what to call it in an error
    /// \throws ImageError if it has no pixels, is too large, or its strides, region and format do not fit
    FrameRows(const Frame& frame, const std::string& name);

    [[nodiscard]] Size size() const noexcept { return size_; }

    /// Bytes of a pixel as row() gives it: 1, 3 or 4.
    [[nodiscard]] int channels() const noexcept { return channels_; }

    /// Bytes of a row as row() gives it.
    [[nodiscard]] std::size_t row_bytes() const noexcept {
        return static_cast<std::size_t>(size_.width) * static_cast<std::size_t>(channels_);
    }

    /// Where red, green and blue are in a pixel.
    [[nodiscard]] const std::array<int, 3>& rgb() const noexcept { return rgb_; }

    /// Whether row() writes into its scratch memory, because the frame has no such pixels.
    [[nodiscard]] bool converts() const noexcept { return chroma_ != nullptr; }

    /// One row.
    ///
    /// \param y from 0 to the height, less 1
    /// \param scratch row_bytes() bytes if converts(), not used otherwise
    /// \returns row_bytes() bytes, of the frame or of scratch
    [[nodiscard]] const std::uint8_t* row(int y, std::uint8_t* scratch) const noexcept;

    /// Copy all pixels, three bytes each.
    ///
    /// \param out 3 · height · width bytes
    /// \param bgr blue first, or red first
    void pack(std::uint8_t* out, bool bgr = false) const;

 private:
    Size size_;
    int channels_ = 0;
    std::array<int, 3> rgb_{};
    const std::uint8_t* pixels_ = nullptr;
    std::ptrdiff_t stride_ = 0;
    const std::uint8_t* chroma_ = nullptr;
    std::ptrdiff_t chroma_stride_ = 0;
};

}  // namespace holocron::detail
