/// \file
/// Extent of an image.
#pragma once

namespace holocron {

/// Height and width in pixels.
struct Size {
    int height = 0;
    int width = 0;

    friend constexpr bool operator==(Size a, Size b) noexcept { return a.height == b.height && a.width == b.width; }
    friend constexpr bool operator!=(Size a, Size b) noexcept { return !(a == b); }
};

}  // namespace holocron
