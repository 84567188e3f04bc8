// The library's pixels for the tests and benchmarks that are written in Python: flat functions, called through ctypes.
// Each returns null or what went wrong; such a text lives until the thread's next call.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "holocron/errors.hpp"
#include "holocron/frame.hpp"
#include "pixel_format.hpp"
#include "resampling.hpp"

#if defined(_WIN32)
#define SHIM extern "C" __declspec(dllexport)
#else
#define SHIM extern "C" __attribute__((visibility("default")))
#endif

using namespace holocron;
using namespace holocron::detail;

/// A Frame as ctypes can write it.
struct FlatFrame {
    const std::uint8_t* pixels;
    const std::uint8_t* chroma;
    std::int64_t stride;
    std::int64_t chroma_stride;
    std::int32_t width;
    std::int32_t height;
    std::int32_t format;
    std::int32_t has_region;
    std::int32_t region[4];
};

namespace {

Frame frame_of(const FlatFrame& flat) {
    Frame frame{flat.pixels, flat.width, flat.height, static_cast<std::ptrdiff_t>(flat.stride)};
    frame.format = static_cast<Format>(flat.format);
    frame.chroma = flat.chroma;
    frame.chroma_stride = static_cast<std::ptrdiff_t>(flat.chroma_stride);
    if (flat.has_region != 0) {
        frame.region = Region{flat.region[0], flat.region[1], flat.region[2], flat.region[3]};
    }
    return frame;
}

template <typename Work>
const char* guarded(const Work& work) {
    thread_local std::string message;
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // namespace

SHIM const char* shim_resize(const FlatFrame* frame, int height, int width, int interpolation, int threads,
                             std::uint8_t* out) {
    return guarded([&] {
        const FrameRows rows(frame_of(*frame), "the frame");
        const Resampler resample(rows.size(), {height, width}, static_cast<Interpolation>(interpolation));
        resample(rows, out, threads);
    });
}
