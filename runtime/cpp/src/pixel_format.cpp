#include "pixel_format.hpp"

#include <limits>
#include <vector>

#include "holocron/errors.hpp"
#include "pixel_kernels.hpp"

namespace holocron::detail {
namespace {

struct Layout {
    int bytes;  // of a pixel in memory; of NV12 in its plane of luma
    int channels;
    std::array<int, 3> rgb;
};

Layout layout_of(Format format, const std::string& name) {
    switch (format) {
        case Format::RGB:
            return {3, 3, {0, 1, 2}};
        case Format::BGR:
            return {3, 3, {2, 1, 0}};
        case Format::RGBA:
            return {4, 4, {0, 1, 2}};
        case Format::BGRA:
            return {4, 4, {2, 1, 0}};
        case Format::Gray:
            return {1, 1, {0, 0, 0}};
        case Format::NV12:
            return {1, 3, {0, 1, 2}};
    }
    throw ImageError(name + " has the unknown format " + std::to_string(static_cast<int>(format)) +
                     ": expected RGB, BGR, RGBA, BGRA, Gray or NV12");
}

std::string text_of(Size size) { return std::to_string(size.width) + " x " + std::to_string(size.height); }

void check_size(const Frame& frame, const std::string& name) {
    const Size size{frame.height, frame.width};
    if (size.height <= 0 || size.width <= 0) {
        throw ImageError(name + " has no pixels: its size is " + text_of(size));
    }
    if (size.height > kMaxPixelsASide || size.width > kMaxPixelsASide) {
        throw ImageError(name + " has the size " + text_of(size) + ": expected " + std::to_string(kMaxPixelsASide) +
                         " pixels a side at most");
    }
    if (frame.pixels == nullptr) {
        throw ImageError(name + " has no pixels: its pointer is null");
    }
}

// The stride that is meant, after making sure that rows fit into it and that the plane can exist.
std::ptrdiff_t checked_stride(std::ptrdiff_t stride, int row_bytes, int rows, const char* plane,
                              const std::string& name) {
    if (stride == 0) {
        return row_bytes;
    }
    if (stride < row_bytes) {
        throw ImageError(name + " has a " + plane + "stride of " + std::to_string(stride) +
                         " bytes, and its rows have " + std::to_string(row_bytes));
    }
    constexpr std::ptrdiff_t planes = 4;  // room for both planes of NV12
    if (stride > std::numeric_limits<std::ptrdiff_t>::max() / planes / rows) {
        throw ImageError(name + " has a " + plane + "stride of " + std::to_string(stride) + " bytes: its " +
                         std::to_string(rows) + " rows do not fit into memory");
    }
    return stride;
}

Region checked_region(const Frame& frame, const std::string& name) {
    const Region region = frame.region.value_or(Region{0, 0, frame.width, frame.height});
    const bool inside = region.x >= 0 && region.y >= 0 && region.width > 0 && region.height > 0 &&
                        region.width <= frame.width && region.height <= frame.height &&
                        region.x <= frame.width - region.width && region.y <= frame.height - region.height;
    if (!inside) {
        throw ImageError(name + " has the region of " + text_of({region.height, region.width}) + " pixels at (" +
                         std::to_string(region.x) + ", " + std::to_string(region.y) + "), which is not part of its " +
                         text_of({frame.height, frame.width}));
    }
    return region;
}

bool is_odd(int value) { return value % 2 != 0; }

void check_even(const Frame& frame, const Region& region, const std::string& name) {
    if (is_odd(frame.width) || is_odd(frame.height)) {
        throw ImageError(name + " is NV12 of " + text_of({frame.height, frame.width}) +
                         " pixels: expected an even width and an even height");
    }
    if (is_odd(region.x) || is_odd(region.y) || is_odd(region.width) || is_odd(region.height)) {
        throw ImageError(name + " is NV12 with the region of " + text_of({region.height, region.width}) +
                         " pixels at (" + std::to_string(region.x) + ", " + std::to_string(region.y) +
                         "): expected even numbers");
    }
}

}  // namespace

FrameRows::FrameRows(const Frame& frame, const std::string& name) {
    const Layout layout = layout_of(frame.format, name);
    check_size(frame, name);
    stride_ = checked_stride(frame.stride, frame.width * layout.bytes, frame.height, "", name);
    const Region region = checked_region(frame, name);
    size_ = {region.height, region.width};
    channels_ = layout.channels;
    rgb_ = layout.rgb;
    pixels_ = frame.pixels + region.y * stride_ + std::ptrdiff_t{region.x} * layout.bytes;
    if (frame.format == Format::NV12) {
        check_even(frame, region, name);
        const std::ptrdiff_t wanted = frame.chroma_stride == 0 ? stride_ : frame.chroma_stride;
        chroma_stride_ = checked_stride(wanted, frame.width, frame.height, "chroma ", name);
        const std::uint8_t* plane = frame.chroma == nullptr ? frame.pixels + frame.height * stride_ : frame.chroma;
        chroma_ = plane + region.y / 2 * chroma_stride_ + region.x;
    }
}

const std::uint8_t* FrameRows::row(int y, std::uint8_t* scratch) const noexcept {
    const std::uint8_t* pixels = pixels_ + y * stride_;
    if (!converts()) {
        return pixels;
    }
    const std::uint8_t* chroma = chroma_ + y / 2 * chroma_stride_;
    available_pixel_kernels().front().nv12_to_rgb(pixels, chroma, size_.width, scratch);
    return scratch;
}

void FrameRows::pack(std::uint8_t* out, bool bgr) const {
    const PixelKernels& kernels = available_pixel_kernels().front();
    const bool reversed = (rgb_[0] == 2) != bgr;
    const auto width = static_cast<std::size_t>(size_.width);
    std::vector<std::uint8_t> scratch(converts() ? row_bytes() : 0);
    for (int y = 0; y < size_.height; ++y) {
        kernels.to_three(row(y, scratch.data()), channels_, reversed, width,
                         out + static_cast<std::size_t>(y) * width * 3);
    }
}

}  // namespace holocron::detail
