/// \file
/// A picture as it lies in memory: what a camera, a decoder or another library gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "holocron/memory.hpp"

namespace holocron {

/// How the pixels of a frame are laid out. All have 8 bits a value.
enum class Format : std::uint8_t {
    RGB,   ///< red, green, blue: 3 bytes a pixel
    BGR,   ///< blue, green, red: 3 bytes a pixel, as OpenCV has it
    RGBA,  ///< red, green, blue, alpha: 4 bytes a pixel; alpha is dropped
    BGRA,  ///< blue, green, red, alpha: 4 bytes a pixel; alpha is dropped
    Gray,  ///< 1 byte a pixel; the three channels are equal
    /// A plane of luma, 1 byte a pixel, and behind it one of chroma, 2 bytes (Cb, Cr) for each 2 × 2 pixels: what
    /// cameras and video decoders give. Taken for BT.601 in limited range (luma 16 to 235, chroma 16 to 240 about 128).
    /// Width and height are even.
    NV12,
};

/// A rectangle of a frame, in pixels from its upper left corner.
struct Region {
    int x = 0;
    int y = 0;
    int width = 0;
    int height = 0;
};

/// A picture in memory that belongs to the caller. It is read while a call that takes it runs, and not kept.
///
/// An aggregate: `{pixels, width, height, stride, Format::BGR}` is one.
struct Frame {
    const std::uint8_t* pixels = nullptr;  ///< the upper left pixel; of NV12 the luma plane
    int width = 0;                         ///< in pixels
    int height = 0;                        ///< in pixels
    std::ptrdiff_t stride = 0;             ///< bytes from one row to the next; 0: the rows follow each other
    Format format = Format::RGB;
    /// The part that is looked at, as if nothing else were there; results are in pixels of this part. Of NV12 its x, y,
    /// width and height are even.
    std::optional<Region> region = std::nullopt;
    const std::uint8_t* chroma = nullptr;  ///< NV12's plane of chroma; null: it follows the rows of luma
    std::ptrdiff_t chroma_stride = 0;      ///< bytes from one row of chroma to the next; 0: as `stride`
    /// Where the pixels lie. On the GPU a network that runs there and takes frames (`--input frame`) reads them where
    /// they are: one frame at a time, all of it, in its order of channels and without gaps between rows.
    Memory memory = Memory::Host;
};

}  // namespace holocron
