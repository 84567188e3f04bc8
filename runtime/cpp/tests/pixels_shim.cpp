// The library's pixels for the tests and benchmarks that are written in Python: flat functions, called through ctypes.
// Each returns null or what went wrong; such a text lives until the thread's next call.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "holocron/errors.hpp"
#include "holocron/frame.hpp"
#include "pixel_format.hpp"
#include "preprocessing.hpp"
#include "resampling.hpp"
#include "resize_matrices.hpp"
#include "shim.hpp"

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

/// A Preprocessing likewise.
struct FlatPreprocessing {
    double mean[3];
    double std[3];
    std::int32_t height;
    std::int32_t width;
    std::int32_t resize;
    std::int32_t pad_mode;
    std::int32_t interpolation;
};

namespace {

Preprocessing preprocessing_of(const FlatPreprocessing& flat) {
    Preprocessing preprocessing;
    preprocessing.size = {flat.height, flat.width};
    std::copy_n(flat.mean, 3, preprocessing.mean.begin());
    std::copy_n(flat.std, 3, preprocessing.std.begin());
    preprocessing.resize = static_cast<ResizeMode>(flat.resize);
    preprocessing.pad_mode = static_cast<PadMode>(flat.pad_mode);
    preprocessing.interpolation = static_cast<Interpolation>(flat.interpolation);
    return preprocessing;
}

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

}  // namespace

SHIM const char* shim_resize(const std::uint8_t* rgb, int height, int width, int new_height, int new_width,
                             int interpolation, int threads, std::uint8_t* out) {
    return guarded([&] {
        const FrameRows rows({rgb, width, height, 0, Format::RGB}, "the frame");
        const Resampler resample(rows.size(), {new_height, new_width}, static_cast<Interpolation>(interpolation));
        resample(rows, out, threads);
    });
}

SHIM const char* shim_pack(const FlatFrame* frame, int bgr, std::uint8_t* out) {
    return guarded([&] { FrameRows(frame_of(*frame), "the frame").pack(out, bgr != 0); });
}

SHIM void* shim_preprocessor(const FlatPreprocessing* preprocessing) {
    return std::make_unique<Preprocessor>(preprocessing_of(*preprocessing)).release();
}

SHIM void shim_preprocessor_free(void* preprocessor) {
    const std::unique_ptr<Preprocessor> owner(static_cast<Preprocessor*>(preprocessor));
}

SHIM const char* shim_preprocess(const void* preprocessor, const FlatFrame* frame, int threads, float* out) {
    return guarded([&] {
        const Preprocessor& preprocess = *static_cast<const Preprocessor*>(preprocessor);
        preprocess(frame_of(*frame), out, threads, "the frame");
    });
}

SHIM int shim_needs_rows_first(const FlatPreprocessing* preprocessing, int height, int width) {
    return needs_rows_first({height, width}, preprocessing_of(*preprocessing)) ? 1 : 0;
}

SHIM void shim_matrices(const FlatPreprocessing* preprocessing, int height, int width, int after_rows, float* rows,
                        float* columns) {
    const auto make = after_rows != 0 ? resize_matrices_after_rows : resize_matrices;
    const ResizeMatrices matrices = make({height, width}, preprocessing_of(*preprocessing));
    std::copy(matrices.rows.begin(), matrices.rows.end(), rows);
    std::copy(matrices.columns.begin(), matrices.columns.end(), columns);
}
