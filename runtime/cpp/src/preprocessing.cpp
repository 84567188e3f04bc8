#include "preprocessing.hpp"

#include <algorithm>
#include <memory>

#include "pixel_format.hpp"

namespace holocron::detail {
namespace {

constexpr int kBlack = -1;

// What normalizing one value takes, in the time of a product of resizing.
constexpr double kProductsOfAValue = 4;
constexpr int kRowsAtOnce = 8;

// Pixel `i` of an axis that is mirrored back and forth for ever.
int mirrored(int i, int length, bool repeat_ends) {
    const int period = repeat_ends ? 2 * length : 2 * (length - 1);
    if (period == 0) {
        return 0;
    }
    const int folded = ((i % period) + period) % period;
    return folded < length ? folded : (repeat_ends ? period - 1 : period) - folded;
}

int shown_pixel(int i, int length, PadMode mode) {
    if (i >= 0 && i < length) {
        return i;
    }
    switch (mode) {
        case PadMode::Edge:
            return i < 0 ? 0 : length - 1;
        case PadMode::Reflect:
            return mirrored(i, length, false);
        case PadMode::Symmetric:
            return mirrored(i, length, true);
        case PadMode::Constant:
            break;
    }
    return kBlack;
}

// Largest size of the same aspect ratio that fits; the side that does not touch the frame is rounded half up.
Size fitted(Size image, Size size) {
    const std::int64_t h = image.height;
    const std::int64_t w = image.width;
    const std::int64_t H = size.height;
    const std::int64_t W = size.width;
    if (H * w <= W * h) {
        return {size.height, static_cast<int>(std::max<std::int64_t>(1, (2 * w * H + h) / (2 * h)))};
    }
    return {static_cast<int>(std::max<std::int64_t>(1, (2 * h * W + w) / (2 * w))), size.width};
}

// One channel of a row of pixels.
void normalize(const std::uint8_t* values, int channels, int count, const std::array<float, 256>& table, float* out) {
    for (int x = 0; x < count; ++x) {
        out[x] = table[values[static_cast<std::ptrdiff_t>(x) * channels]];
    }
}

}  // namespace

PaddedBox padded_box(Size image, const Preprocessing& preprocessing) noexcept {
    const Size size = preprocessing.size;
    if (preprocessing.resize == ResizeMode::Squish) {
        return {0, 0, size};
    }
    const Size inner = fitted(image, size);
    return {(size.height - inner.height) / 2, (size.width - inner.width) / 2, inner};
}

std::vector<int> padded_axis(int before, int inner, int length, PadMode mode) {
    std::vector<int> shown(static_cast<std::size_t>(length));
    for (int i = 0; i < length; ++i) {
        shown[static_cast<std::size_t>(i)] = shown_pixel(i - before, inner, mode);
    }
    return shown;
}

Preprocessor::Preprocessor(const Preprocessing& preprocessing) : preprocessing_(preprocessing) {
    for (std::size_t c = 0; c < 3; ++c) {
        // The float nearest to each decimal number, then arithmetic of floats, each step rounded.
        const auto mean = static_cast<float>(preprocessing.mean[c]);
        const auto std = static_cast<float>(preprocessing.std[c]);
        for (std::size_t value = 0; value < 256; ++value) {
            const float unit = static_cast<float>(value) / 255.0F;
            const float centred = unit - mean;
            normalized_[c][value] = centred / std;
        }
    }
}

std::size_t Preprocessor::value_count() const noexcept {
    const Size size = preprocessing_.size;
    return 3 * static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width);
}

void Preprocessor::operator()(const Frame& frame, float* out, int threads, const std::string& name) const {
    const FrameRows rows(frame, name);
    const PaddedBox box = padded_box(rows.size(), preprocessing_);
    std::shared_ptr<const Resampler> resample;
    double products = kProductsOfAValue * static_cast<double>(value_count());
    if (rows.size() != box.size) {
        resample = resamplers_.get(rows.size(),
                                   [&] { return Resampler(rows.size(), box.size, preprocessing_.interpolation); });
        products += resample->products(rows.channels());
    }
    const int grain = resample != nullptr ? resample->grain() : kRowsAtOnce;
    parallel_ranges(box.size.height, useful_threads(products, threads), grain,
                    [&] { return row_writer(rows, resample.get(), box, out); });
    for (std::size_t channel = 0; channel < 3; ++channel) {
        pad_rows(out + channel * (value_count() / 3), box, channel);
    }
}

// Writes some rows of the resized image, with the padding beside them.
RangeWork Preprocessor::row_writer(const FrameRows& rows, const Resampler* resample, PaddedBox box, float* out) const {
    const auto bytes = static_cast<std::size_t>(box.size.width) * static_cast<std::size_t>(rows.channels());
    if (resample == nullptr) {
        return [this, &rows, box, out, pixels = std::vector<std::uint8_t>(rows.converts() ? bytes : 0)](
                   int begin, int end) mutable {
            for (int y = begin; y < end; ++y) {
                write_row(rows, rows.row(y, pixels.data()), box, y, out);
            }
        };
    }
    const auto most = static_cast<std::size_t>(resample->grain());
    return [this, &rows, box, out, bytes, resize = resample->bands(rows), grain = resample->grain(),
            pixels = std::vector<std::uint8_t>(bytes * most)](int begin, int end) mutable {
        for (int first = begin; first < end; first += grain) {
            const int last = std::min(first + grain, end);
            resize(first, last, pixels.data());
            for (int y = first; y < last; ++y) {
                write_row(rows, pixels.data() + static_cast<std::size_t>(y - first) * bytes, box, y, out);
            }
        }
    };
}

void Preprocessor::write_row(const FrameRows& rows, const std::uint8_t* pixels, PaddedBox box, int y,
                             float* out) const {
    const auto width = static_cast<std::size_t>(preprocessing_.size.width);
    for (std::size_t channel = 0; channel < 3; ++channel) {
        float* row = out + channel * (value_count() / 3) + static_cast<std::size_t>(y + box.top) * width;
        normalize(pixels + rows.rgb()[channel], rows.channels(), box.size.width, normalized_[channel], row + box.left);
        pad_columns(row, box, channel);
    }
}

void Preprocessor::pad_columns(float* row, PaddedBox box, std::size_t channel) const {
    const int width = preprocessing_.size.width;
    const auto fill = [&](int x) {
        const int shown = shown_pixel(x - box.left, box.size.width, preprocessing_.pad_mode);
        row[x] = shown == kBlack ? normalized_[channel][0] : row[box.left + shown];
    };
    for (int x = 0; x < box.left; ++x) {
        fill(x);
    }
    for (int x = box.left + box.size.width; x < width; ++x) {
        fill(x);
    }
}

void Preprocessor::pad_rows(float* plane, PaddedBox box, std::size_t channel) const {
    const auto width = static_cast<std::size_t>(preprocessing_.size.width);
    const auto fill = [&](int y) {
        const int shown = shown_pixel(y - box.top, box.size.height, preprocessing_.pad_mode);
        float* row = plane + static_cast<std::size_t>(y) * width;
        if (shown == kBlack) {
            std::fill_n(row, width, normalized_[channel][0]);
        } else {
            std::copy_n(plane + static_cast<std::size_t>(box.top + shown) * width, width, row);
        }
    };
    for (int y = 0; y < box.top; ++y) {
        fill(y);
    }
    for (int y = box.top + box.size.height; y < preprocessing_.size.height; ++y) {
        fill(y);
    }
}

}  // namespace holocron::detail
