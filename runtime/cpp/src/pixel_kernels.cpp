#include "pixel_kernels.hpp"

#include <algorithm>
#include <cstring>

#include "vectorized.hpp"

namespace holocron::detail {
namespace {

constexpr int kColourBits = 20;

constexpr std::int32_t colour_units(double factor) {
    return static_cast<std::int32_t>(factor * (1 << kColourBits) + 0.5);
}

constexpr std::int32_t kHalf = 1 << (kColourBits - 1);
constexpr std::int32_t kLuma = colour_units(255.0 / 219.0);
constexpr std::int32_t kRedOfCr = colour_units(255.0 / 224.0 * 1.402);
constexpr std::int32_t kGreenOfCb = colour_units(255.0 / 224.0 * 1.772 * 0.114 / 0.587);
constexpr std::int32_t kGreenOfCr = colour_units(255.0 / 224.0 * 1.402 * 0.299 / 0.587);
constexpr std::int32_t kBlueOfCb = colour_units(255.0 / 224.0 * 1.772);

HOLOCRON_INLINE std::uint8_t clipped(std::int32_t units) {
    return static_cast<std::uint8_t>(std::min(std::max(units >> kColourBits, 0), 255));
}

// Some pairs of pixels, plane by plane before they are interleaved.
template <int Pairs>
HOLOCRON_INLINE void nv12_block(const std::uint8_t* luma, const std::uint8_t* chroma, std::uint8_t* rgb) {
    std::uint8_t red[2 * Pairs];
    std::uint8_t green[2 * Pairs];
    std::uint8_t blue[2 * Pairs];
    for (int i = 0; i < Pairs; ++i) {
        const std::int32_t cb = chroma[2 * i] - 128;
        const std::int32_t cr = chroma[2 * i + 1] - 128;
        const std::int32_t more_red = kHalf + kRedOfCr * cr;
        const std::int32_t more_green = kHalf - kGreenOfCb * cb - kGreenOfCr * cr;
        const std::int32_t more_blue = kHalf + kBlueOfCb * cb;
        const std::int32_t left = kLuma * (luma[2 * i] - 16);
        const std::int32_t right = kLuma * (luma[2 * i + 1] - 16);
        red[2 * i] = clipped(left + more_red);
        red[2 * i + 1] = clipped(right + more_red);
        green[2 * i] = clipped(left + more_green);
        green[2 * i + 1] = clipped(right + more_green);
        blue[2 * i] = clipped(left + more_blue);
        blue[2 * i + 1] = clipped(right + more_blue);
    }
    for (int i = 0; i < 2 * Pairs; ++i) {
        rgb[3 * i] = red[i];
        rgb[3 * i + 1] = green[i];
        rgb[3 * i + 2] = blue[i];
    }
}

HOLOCRON_INLINE void nv12_to_rgb_body(const std::uint8_t* luma, const std::uint8_t* chroma, int width,
                                      std::uint8_t* rgb) {
    constexpr int pairs = 32;
    int x = 0;
    for (; x + 2 * pairs <= width; x += 2 * pairs) {
        nv12_block<pairs>(luma + x, chroma + x, rgb + 3 * x);
    }
    for (; x < width; x += 2) {
        nv12_block<1>(luma + x, chroma + x, rgb + 3 * x);
    }
}

template <std::size_t Channels, std::size_t First, std::size_t Second, std::size_t Third>
HOLOCRON_INLINE void pick(const std::uint8_t* pixels, std::size_t count, std::uint8_t* out) {
    for (std::size_t i = 0; i < count; ++i) {
        out[3 * i] = pixels[Channels * i + First];
        out[3 * i + 1] = pixels[Channels * i + Second];
        out[3 * i + 2] = pixels[Channels * i + Third];
    }
}

HOLOCRON_INLINE void to_three_body(const std::uint8_t* pixels, int channels, bool reversed, std::size_t count,
                                   std::uint8_t* out) {
    if (channels == 1) {
        pick<1, 0, 0, 0>(pixels, count, out);
    } else if (channels == 3 && reversed) {
        pick<3, 2, 1, 0>(pixels, count, out);
    } else if (channels == 3) {
        std::memcpy(out, pixels, 3 * count);
    } else if (reversed) {
        pick<4, 2, 1, 0>(pixels, count, out);
    } else {
        pick<4, 0, 1, 2>(pixels, count, out);
    }
}

void nv12_to_rgb(const std::uint8_t* luma, const std::uint8_t* chroma, int width, std::uint8_t* rgb) {
    nv12_to_rgb_body(luma, chroma, width, rgb);
}

void to_three(const std::uint8_t* pixels, int channels, bool reversed, std::size_t count, std::uint8_t* out) {
    to_three_body(pixels, channels, reversed, count, out);
}

#if defined(HOLOCRON_AVX2)
HOLOCRON_AVX2 void nv12_to_rgb_avx2(const std::uint8_t* luma, const std::uint8_t* chroma, int width,
                                    std::uint8_t* rgb) {
    nv12_to_rgb_body(luma, chroma, width, rgb);
}

HOLOCRON_AVX2 void to_three_avx2(const std::uint8_t* pixels, int channels, bool reversed, std::size_t count,
                                 std::uint8_t* out) {
    to_three_body(pixels, channels, reversed, count, out);
}
#endif

std::vector<PixelKernels> find_kernels() {
    std::vector<PixelKernels> found;
#if defined(HOLOCRON_AVX2)
    if (has_avx2()) {
        found.push_back({nv12_to_rgb_avx2, to_three_avx2});
    }
#endif
    found.push_back({nv12_to_rgb, to_three});
    return found;
}

}  // namespace

const std::vector<PixelKernels>& available_pixel_kernels() {
    static const std::vector<PixelKernels> kernels = find_kernels();
    return kernels;
}

}  // namespace holocron::detail
