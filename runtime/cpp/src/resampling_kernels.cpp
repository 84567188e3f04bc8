#include "resampling_kernels.hpp"

#include <algorithm>
#include <cstring>

#include "vectorized.hpp"

// Sums are unsigned, so that they may wrap on the way: in the end they fit into 31 bits, since weights add up to about
// 1 and pixels have 8 bits.

namespace holocron::detail {
namespace {

constexpr std::uint32_t kHalf = std::uint32_t{1} << (kWeightBits - 1);

HOLOCRON_INLINE std::uint8_t clipped(std::uint32_t sum) {
    const auto value = static_cast<std::int32_t>(sum) >> kWeightBits;
    return static_cast<std::uint8_t>(std::min(std::max(value, 0), 255));
}

// Weighted sums of `Lanes` bytes that lie at `at(tap)`. How many of them one loop goes over decides whether the
// compiler keeps the sums in registers; measured with GCC.
template <int Lanes, int Loop, typename At>
HOLOCRON_INLINE void weighted_sum(const At& at, const std::int32_t* units, int count, std::uint8_t* out) {
    std::uint32_t sums[Lanes];
    for (int k = 0; k < Lanes; ++k) {
        sums[k] = kHalf;
    }
    for (int tap = 0; tap < count; ++tap) {
        const std::uint8_t* pixels = at(tap);
        const auto weight = static_cast<std::uint32_t>(units[tap]);
        for (int begin = 0; begin < Lanes; begin += Loop) {
            for (int k = begin; k < begin + Loop; ++k) {
                sums[k] += weight * pixels[k];
            }
        }
    }
    for (int k = 0; k < Lanes; ++k) {
        out[k] = clipped(sums[k]);
    }
}

// Does `length` things `Block` at a time. The last block overlaps the one before it; what is shorter goes one by one.
template <std::size_t Block, typename DoBlock, typename DoOne>
HOLOCRON_INLINE void for_blocks(std::size_t length, const DoBlock& block, const DoOne& one) {
    if (length < Block) {
        for (std::size_t x = 0; x < length; ++x) {
            one(x);
        }
        return;
    }
    for (std::size_t x = 0; x + Block < length; x += Block) {
        block(x);
    }
    block(length - Block);
}

template <int Channels>
HOLOCRON_INLINE void horizontal_channels(const std::uint8_t* columns, const AxisWeights& axis, std::uint8_t* out) {
    constexpr int lanes = Channels * kBlockRows;
    constexpr int loop = lanes == 64 ? 32 : lanes;
    for (int x = 0; x < axis.target; ++x) {
        const auto i = static_cast<std::size_t>(x);
        const std::uint8_t* first = columns + static_cast<std::ptrdiff_t>(axis.first[i]) * lanes;
        weighted_sum<lanes, loop>([first](int tap) { return first + static_cast<std::ptrdiff_t>(tap) * lanes; },
                                  axis.of(x), axis.count[i], out + i * lanes);
    }
}

HOLOCRON_INLINE void horizontal_body(const std::uint8_t* columns, int channels, const AxisWeights& axis,
                                     std::uint8_t* out) {
    switch (channels) {
        case 1:
            horizontal_channels<1>(columns, axis, out);
            break;
        case 3:
            horizontal_channels<3>(columns, axis, out);
            break;
        default:
            horizontal_channels<4>(columns, axis, out);
            break;
    }
}

HOLOCRON_INLINE void vertical_body(const std::uint8_t* const* rows, const std::int32_t* units, int count,
                                   std::size_t length, std::uint8_t* out) {
    constexpr std::size_t lanes = 64;
    for_blocks<lanes>(
        length,
        [&](std::size_t x) { weighted_sum<lanes, 32>([&](int tap) { return rows[tap] + x; }, units, count, out + x); },
        [&](std::size_t x) { weighted_sum<1, 1>([&](int tap) { return rows[tap] + x; }, units, count, out + x); });
}

// Transposing is shuffling a deck perfectly: of 16 rows in a row, each byte of the first half is followed by the one of
// the second half at its place, and after four times the 16 bytes of a column lie side by side.
template <std::size_t Half>
HOLOCRON_INLINE void shuffle(const std::uint8_t* first, const std::uint8_t* second, std::uint8_t* out) {
    for (std::size_t k = 0; k < Half; ++k) {
        out[2 * k] = first[k];
        out[2 * k + 1] = second[k];
    }
}

HOLOCRON_INLINE void to_columns_body(const std::uint8_t* const* rows, std::size_t length, std::uint8_t* columns) {
    constexpr std::size_t block = 64;
    constexpr std::size_t half = block * kBlockRows / 2;
    std::uint8_t once[2 * half];
    std::uint8_t twice[2 * half];
    for_blocks<block>(
        length,
        [&](std::size_t x) {
            for (std::size_t r = 0; r < kBlockRows / 2; ++r) {
                shuffle<block>(rows[r] + x, rows[r + kBlockRows / 2] + x, once + r * 2 * block);
            }
            shuffle<half>(once, once + half, twice);
            shuffle<half>(twice, twice + half, once);
            shuffle<half>(once, once + half, columns + x * kBlockRows);
        },
        [&](std::size_t x) {
            for (std::size_t r = 0; r < kBlockRows; ++r) {
                columns[x * kBlockRows + r] = rows[r][x];
            }
        });
}

HOLOCRON_INLINE void to_rows_body(const std::uint8_t* columns, std::size_t length, std::uint8_t* const* rows) {
    constexpr std::size_t half = kBlockRows * kBlockRows / 2;
    std::uint8_t once[2 * half];
    std::uint8_t twice[2 * half];
    for_blocks<kBlockRows>(
        length,
        [&](std::size_t x) {
            const std::uint8_t* square = columns + x * kBlockRows;
            shuffle<half>(square, square + half, once);
            shuffle<half>(once, once + half, twice);
            shuffle<half>(twice, twice + half, once);
            shuffle<half>(once, once + half, twice);
            for (std::size_t r = 0; r < kBlockRows; ++r) {
                std::memcpy(rows[r] + x, twice + r * kBlockRows, kBlockRows);
            }
        },
        [&](std::size_t x) {
            for (std::size_t r = 0; r < kBlockRows; ++r) {
                rows[r][x] = columns[x * kBlockRows + r];
            }
        });
}

void to_columns(const std::uint8_t* const* rows, std::size_t length, std::uint8_t* columns) {
    to_columns_body(rows, length, columns);
}

void to_rows(const std::uint8_t* columns, std::size_t length, std::uint8_t* const* rows) {
    to_rows_body(columns, length, rows);
}

void horizontal(const std::uint8_t* columns, int channels, const AxisWeights& axis, std::uint8_t* out) {
    horizontal_body(columns, channels, axis, out);
}

void vertical(const std::uint8_t* const* rows, const std::int32_t* units, int count, std::size_t length,
              std::uint8_t* out) {
    vertical_body(rows, units, count, length, out);
}

#if defined(HOLOCRON_AVX2)
HOLOCRON_AVX2 void to_columns_avx2(const std::uint8_t* const* rows, std::size_t length, std::uint8_t* columns) {
    to_columns_body(rows, length, columns);
}

HOLOCRON_AVX2 void to_rows_avx2(const std::uint8_t* columns, std::size_t length, std::uint8_t* const* rows) {
    to_rows_body(columns, length, rows);
}

HOLOCRON_AVX2 void horizontal_avx2(const std::uint8_t* columns, int channels, const AxisWeights& axis,
                                   std::uint8_t* out) {
    horizontal_body(columns, channels, axis, out);
}

HOLOCRON_AVX2 void vertical_avx2(const std::uint8_t* const* rows, const std::int32_t* units, int count,
                                 std::size_t length, std::uint8_t* out) {
    vertical_body(rows, units, count, length, out);
}
#endif

std::vector<ResamplingKernels> find_kernels() {
    std::vector<ResamplingKernels> found;
#if defined(HOLOCRON_AVX2)
    if (has_avx2()) {
        found.push_back({to_columns_avx2, to_rows_avx2, horizontal_avx2, vertical_avx2});
    }
#endif
    found.push_back({to_columns, to_rows, horizontal, vertical});
    return found;
}

}  // namespace

const std::vector<ResamplingKernels>& available_resampling_kernels() {
    static const std::vector<ResamplingKernels> kernels = find_kernels();
    return kernels;
}

}  // namespace holocron::detail
