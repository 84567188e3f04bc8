#include "resampling.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "parallel.hpp"
#include "resampling_kernels.hpp"

namespace holocron::detail {
namespace {

using Bytes = std::vector<std::uint8_t>;
using BlockIn = std::array<const std::uint8_t*, kBlockRows>;
using BlockOut = std::array<std::uint8_t*, kBlockRows>;

// Products below which starting another thread costs more than it gains: it does some 10⁴ a microsecond.
constexpr double kProductsWorthAThread = 1e6;

std::size_t row_bytes(int width, int channels) {
    return static_cast<std::size_t>(width) * static_cast<std::size_t>(channels);
}

// The latest rows of an image: row y is kept until `capacity` more have come.
class RecentRows {
 public:
    RecentRows(int capacity, std::size_t row_bytes)
        : capacity_(capacity), row_bytes_(row_bytes), bytes_(static_cast<std::size_t>(capacity) * row_bytes) {}

    [[nodiscard]] std::uint8_t* operator[](int y) noexcept {
        return bytes_.data() + static_cast<std::size_t>(y % capacity_) * row_bytes_;
    }

 private:
    int capacity_;
    std::size_t row_bytes_;
    Bytes bytes_;
};

// The rows of a frame in ascending order, until it is restarted. Those that are converted on the way are kept as
// RecentRows has it.
class RowReader {
 public:
    RowReader(const FrameRows& rows, int capacity)
        : rows_(rows), converted_(rows.converts() ? capacity : 1, rows.converts() ? rows.row_bytes() : 0) {}

    [[nodiscard]] const std::uint8_t* operator()(int y) {
        if (!rows_.converts()) {
            return rows_.row(y, nullptr);
        }
        if (y >= next_) {
            next_ = y + 1;
            return rows_.row(y, converted_[y]);
        }
        return converted_[y];
    }

    void restart() noexcept { next_ = 0; }

 private:
    const FrameRows& rows_;
    RecentRows converted_;
    int next_ = 0;
};

// A block of them; behind the last row it is repeated.
BlockIn block_of_input(RowReader& read, int first, int height) {
    BlockIn block{};
    for (int i = 0; i < kBlockRows; ++i) {
        block[static_cast<std::size_t>(i)] = read(std::min(first + i, height - 1));
    }
    return block;
}

// Resizes blocks of rows to another width.
class BlockResizer {
 public:
    BlockResizer(const AxisWeights& axis, int channels)
        : axis_(axis),
          channels_(channels),
          columns_(row_bytes(axis.source, channels) * kBlockRows),
          resized_(row_bytes(axis.target, channels) * kBlockRows) {}

    void operator()(const BlockIn& rows, const BlockOut& out) {
        kernels_.to_columns(rows.data(), row_bytes(axis_.source, channels_), columns_.data());
        kernels_.horizontal(columns_.data(), channels_, axis_, resized_.data());
        kernels_.to_rows(resized_.data(), row_bytes(axis_.target, channels_), out.data());
    }

 private:
    const ResamplingKernels& kernels_ = available_resampling_kernels().front();
    const AxisWeights& axis_;
    int channels_;
    Bytes columns_;
    Bytes resized_;
};

// Resizes rows to another height.
class TapRows {
 public:
    explicit TapRows(const AxisWeights& axis) : axis_(axis), rows_(static_cast<std::size_t>(axis.taps)) {}

    // One output row out of what `row_at` gives for each of its source rows.
    template <typename RowAt>
    void sum(int y, RowAt&& row_at, std::size_t length, std::uint8_t* out) {
        const int first = axis_.first[static_cast<std::size_t>(y)];
        const int count = axis_.count[static_cast<std::size_t>(y)];
        for (int tap = 0; tap < count; ++tap) {
            rows_[static_cast<std::size_t>(tap)] = row_at(first + tap);
        }
        kernels_.vertical(rows_.data(), axis_.of(y), count, length, out);
    }

 private:
    const ResamplingKernels& kernels_ = available_resampling_kernels().front();
    const AxisWeights& axis_;
    std::vector<const std::uint8_t*> rows_;
};

// Some pixels of a row; black for those of no place.
//
// The first `roomy` of them have another behind them, in the row and in `out`: four bytes are copied faster than three.
template <std::size_t Channels>
void pick(const std::uint8_t* row, const std::vector<int>& places, std::size_t roomy, std::uint8_t* out) {
    constexpr std::uint8_t black[Channels] = {};
    constexpr std::size_t copied = Channels == 3 ? 4 : Channels;
    constexpr std::size_t unrolled = 8;  // counting takes as long as a copy, and compilers do not unroll this one
    const int* place = places.data();    // `out` may alias the vector's own pointer, for all that the compiler knows
    std::size_t i = 0;
    for (; i + unrolled <= roomy; i += unrolled, out += unrolled * Channels) {
        for (std::size_t j = 0; j < unrolled; ++j) {
            std::memcpy(out + j * Channels, row + static_cast<std::size_t>(place[i + j]) * Channels, copied);
        }
    }
    for (; i < places.size(); ++i, out += Channels) {
        const int x = place[i];
        std::memcpy(out, x < 0 ? black : row + static_cast<std::size_t>(x) * Channels, Channels);
    }
}

// How many pixels at the beginning have another behind them.
std::size_t roomy_places(const std::vector<int>& places, int source) {
    const auto cramped =
        std::find_if(places.begin(), places.end() - 1, [source](int x) { return x < 0 || x >= source - 1; });
    return static_cast<std::size_t>(cramped - places.begin());
}

// Where each row of a block is written; what is beyond the end goes where nobody looks.
BlockOut block_of_output(std::uint8_t* out, std::size_t row_bytes, int rows, std::uint8_t* beyond) {
    BlockOut block{};
    for (int i = 0; i < kBlockRows; ++i) {
        block[static_cast<std::size_t>(i)] = i < rows ? out + static_cast<std::size_t>(i) * row_bytes : beyond;
    }
    return block;
}

}  // namespace

bool rows_first(Size source, Size target, Interpolation interpolation) noexcept {
    const int fewer_rows = source.height - target.height;
    const int fewer_columns = source.width - target.width;
    return interpolation != Interpolation::Nearest && fewer_columns != 0 && fewer_rows > std::max(0, 2 * fewer_columns);
}

int useful_threads(double products, int threads) noexcept {
    const double worth = products / kProductsWorthAThread;
    return worth >= threads ? threads : std::max(1, static_cast<int>(worth));
}

Resampler::Resampler(Size source, Size target, Interpolation interpolation)
    : source_(source), target_(target), rows_first_(rows_first(source, target, interpolation)) {
    if (interpolation == Interpolation::Nearest) {
        nearest_rows_ = nearest_pixels(source.height, target.height);
        nearest_columns_ = nearest_pixels(source.width, target.width);
        return;
    }
    if (source.height != target.height) {
        rows_ = axis_weights(source.height, target.height, interpolation);
    }
    if (source.width != target.width) {
        columns_ = axis_weights(source.width, target.width, interpolation);
    }
}

void Resampler::operator()(const FrameRows& rows, std::uint8_t* out, int threads) const {
    const std::size_t bytes = row_bytes(target_.width, rows.channels());
    parallel_ranges(target_.height, useful_threads(products(rows.channels()), threads), grain(), [&] {
        return [write = bands(rows), out, bytes](int begin, int end) {
            write(begin, end, out + static_cast<std::size_t>(begin) * bytes);
        };
    });
}

double Resampler::products(int channels) const noexcept {
    const int wide_rows = rows_first_ ? target_.height : source_.height;
    const int long_columns = rows_first_ ? source_.width : target_.width;
    const double across = 1.0 * target_.width * wide_rows * columns_.taps;
    const double down = 1.0 * target_.height * long_columns * rows_.taps;
    return (across + down) * channels;
}

Resampler::Bands Resampler::bands(const FrameRows& rows) const {
    if (!nearest_rows_.empty()) {
        return nearest_bands(rows);
    }
    return rows_first_ || columns_.target == 0 ? rows_bands(rows) : columns_bands(rows);
}

int Resampler::grain() const noexcept {
    constexpr int few = 4;
    const bool writes_blocks = columns_.target != 0 && (rows_first_ || rows_.target == 0);
    return writes_blocks ? kBlockRows : few;
}

Resampler::Bands Resampler::nearest_bands(const FrameRows& rows) const {
    const std::size_t bytes = row_bytes(target_.width, rows.channels());
    const std::size_t roomy = roomy_places(nearest_columns_, source_.width);
    return [this, bytes, roomy, channels = rows.channels(), read = RowReader(rows, 1)](int begin, int end,
                                                                                       std::uint8_t* out) mutable {
        read.restart();
        for (int y = begin; y < end; ++y, out += bytes) {
            const int from = nearest_rows_[static_cast<std::size_t>(y)];
            if (from < 0) {
                std::memset(out, 0, bytes);
            } else if (channels == 1) {
                pick<1>(read(from), nearest_columns_, roomy, out);
            } else if (channels == 3) {
                pick<3>(read(from), nearest_columns_, roomy, out);
            } else {
                pick<4>(read(from), nearest_columns_, roomy, out);
            }
        }
    };
}

// Columns first, or nothing but columns. In between only the rows that the next output row needs are kept.
Resampler::Bands Resampler::columns_bands(const FrameRows& rows) const {
    const std::size_t bytes = row_bytes(target_.width, rows.channels());
    if (rows_.target == 0) {
        return [this, bytes, read = RowReader(rows, kBlockRows), resize = BlockResizer(columns_, rows.channels()),
                beyond = Bytes(bytes)](int begin, int end, std::uint8_t* out) mutable {
            read.restart();
            for (int y = begin; y < end; y += kBlockRows, out += kBlockRows * bytes) {
                resize(block_of_input(read, y, source_.height), block_of_output(out, bytes, end - y, beyond.data()));
            }
        };
    }
    return [this, bytes, read = RowReader(rows, kBlockRows), resize = BlockResizer(columns_, rows.channels()),
            narrow = RecentRows(rows_.taps + kBlockRows, bytes), taps = TapRows(rows_), next = 0,
            continued = -1](int begin, int end, std::uint8_t* out) mutable {
        if (begin != continued) {
            read.restart();
            next = rows_.first[static_cast<std::size_t>(begin)];
        }
        for (int y = begin; y < end; ++y, out += bytes) {
            for (; next < rows_.end(y); next += kBlockRows) {
                BlockOut block{};
                for (int i = 0; i < kBlockRows; ++i) {
                    block[static_cast<std::size_t>(i)] = narrow[next + i];
                }
                resize(block_of_input(read, next, source_.height), block);
            }
            taps.sum(
                y, [&](int row) { return narrow[row]; }, bytes, out);
        }
        continued = end;
    };
}

// Rows first, or nothing but rows, or nothing at all.
Resampler::Bands Resampler::rows_bands(const FrameRows& rows) const {
    const std::size_t source_bytes = rows.row_bytes();
    auto low_row = [this, source_bytes, read = RowReader(rows, rows_.taps + 1), taps = TapRows(rows_), continued = -1](
                       int y, std::uint8_t* to) mutable {
        if (y != continued) {
            read.restart();
        }
        continued = y + 1;
        if (rows_.target == 0) {
            std::memcpy(to, read(y), source_bytes);
        } else {
            taps.sum(y, read, source_bytes, to);
        }
    };
    if (columns_.target == 0) {
        return [source_bytes, low_row = std::move(low_row)](int begin, int end, std::uint8_t* out) mutable {
            for (int y = begin; y < end; ++y, out += source_bytes) {
                low_row(y, out);
            }
        };
    }

    const std::size_t bytes = row_bytes(target_.width, rows.channels());
    return
        [source_bytes, bytes, low_row = std::move(low_row), resize = BlockResizer(columns_, rows.channels()),
         low = Bytes(source_bytes * kBlockRows), beyond = Bytes(bytes)](int begin, int end, std::uint8_t* out) mutable {
            const BlockOut block = block_of_output(low.data(), source_bytes, kBlockRows, nullptr);
            BlockIn filled{};
            std::copy(block.begin(), block.end(), filled.begin());
            for (int y = begin; y < end; y += kBlockRows, out += kBlockRows * bytes) {
                for (int i = 0; i < std::min<int>(kBlockRows, end - y); ++i) {
                    low_row(y + i, block[static_cast<std::size_t>(i)]);
                }
                resize(filled, block_of_output(out, bytes, end - y, beyond.data()));
            }
        };
}

}  // namespace holocron::detail
