/// \file
/// Resizing images as Pillow does, to the bit.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "filters.hpp"
#include "pixel_format.hpp"

namespace holocron::detail {

/// Whether Pillow 13 resizes the rows of each column first, and then the columns of each row.
///
/// It does where that takes many more rows away than columns, which is less work. Values are rounded to 8 bits between
/// the two, so the order decides about the last bit. Earlier releases never do.
[[nodiscard]] bool rows_first(Size source, Size target, Interpolation interpolation) noexcept;

/// How many threads are worth starting.
///
/// \param products of Resampler::products
/// \param threads the most that the caller has
[[nodiscard]] int useful_threads(double products, int threads) noexcept;

/// Resizes images of one size to another: what `Image.resize` of Pillow 13 gives for 8-bit channels, every byte equal.
///
/// Holds the weights, and nothing that a call changes: threads may share one.
class Resampler {
 public:
    /// \param source height and width of the images, 1 to kMaxPixelsASide
    /// \param target the same afterwards
    Resampler(Size source, Size target, Interpolation interpolation);

    [[nodiscard]] Size source() const noexcept { return source_; }
    [[nodiscard]] Size target() const noexcept { return target_; }

    /// Resize an image.
    ///
    /// \param rows an image of the size source()
    /// \param out target's height × width pixels of as many bytes as those of `rows` have, in the same order
    /// \param threads the most to use, 1 at least; the pixels do not depend on it
    void operator()(const FrameRows& rows, std::uint8_t* out, int threads) const;

    /// Writes some rows of the resized image, from the first to one past the last. Where they follow those that it
    /// wrote last, nothing is computed twice.
    using Bands = std::function<void(int begin, int end, std::uint8_t* out)>;

    /// What writes rows of an image, in one thread.
    ///
    /// \param rows an image of the size source(), which must live as long as what is returned; so must this
    [[nodiscard]] Bands bands(const FrameRows& rows) const;

    /// How many rows are best written at once.
    [[nodiscard]] int grain() const noexcept;

    /// Products of a weight and a value that an image takes.
    ///
    /// \param channels bytes of a pixel
    [[nodiscard]] double products(int channels) const noexcept;

 private:
    [[nodiscard]] Bands nearest_bands(const FrameRows& rows) const;
    [[nodiscard]] Bands columns_bands(const FrameRows& rows) const;
    [[nodiscard]] Bands rows_bands(const FrameRows& rows) const;

    Size source_;
    Size target_;
    bool rows_first_ = false;
    AxisWeights rows_;     // empty where the height stays, and for Nearest
    AxisWeights columns_;  // empty where the width stays, and for Nearest
    std::vector<int> nearest_rows_;
    std::vector<int> nearest_columns_;
};

}  // namespace holocron::detail
