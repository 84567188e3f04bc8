/// \file
/// How a camera was held.
#pragma once

#include <cstdint>
#include <vector>

#include "image_file.hpp"

/// The EXIF orientation of a JPEG file, 1 to 8; 1, upright, where there is none or it is damaged.
[[nodiscard]] int exif_orientation(const std::vector<std::uint8_t>& jpeg);

/// An image turned and mirrored so that it is upright.
[[nodiscard]] Image upright(const Image& image, int orientation);
