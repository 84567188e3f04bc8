/// \file
/// Resizing as two matrix products, for networks that resize frames themselves.
#pragma once

#include <vector>

#include "preprocessing.hpp"

namespace holocron::detail {

/// What resizes images of one size, padding included: an image `X` of one channel becomes `rows · X · columns`.
struct ResizeMatrices {
    Size source;                 ///< of the images
    Size target;                 ///< of the network's input
    std::vector<float> rows;     ///< target.height × source.height
    std::vector<float> columns;  ///< source.width × target.width
};

/// The matrices that take an image to the network's size.
[[nodiscard]] ResizeMatrices resize_matrices(Size image, const Preprocessing& preprocessing);

/// Whether Pillow resizes the rows of such an image first, while a network multiplies by the columns first. Whoever
/// feeds it then does the rows with a Resampler to rows_done(), and takes resize_matrices_after_rows for what is left.
[[nodiscard]] bool needs_rows_first(Size image, const Preprocessing& preprocessing) noexcept;

/// Size of an image whose rows were resized, padding left out, and whose columns are left.
[[nodiscard]] Size rows_done(Size image, const Preprocessing& preprocessing) noexcept;

/// The matrices for an image whose rows were resized already: what is left is the columns and the padding.
///
/// \param image its size before that
[[nodiscard]] ResizeMatrices resize_matrices_after_rows(Size image, const Preprocessing& preprocessing);

}  // namespace holocron::detail
