#include "resize_matrices.hpp"

#include <algorithm>
#include <cstddef>

#include "filters.hpp"
#include "resampling.hpp"

namespace holocron::detail {
namespace {

// Calls `entry` with target pixel, source pixel and weight for each weight of an axis that is not left out.
template <typename Entry>
void for_each_weight(int source, int target, Interpolation interpolation, const Entry& entry) {
    constexpr float unit = 1.0F / (1 << kWeightBits);
    if (source == target) {
        for (int i = 0; i < target; ++i) {
            entry(i, i, 1.0F);
        }
    } else if (interpolation == Interpolation::Nearest) {
        const std::vector<int> pixels = nearest_pixels(source, target);
        for (int i = 0; i < target; ++i) {
            if (const int pixel = pixels[static_cast<std::size_t>(i)]; pixel >= 0) {
                entry(i, pixel, 1.0F);
            }
        }
    } else {
        const AxisWeights axis = axis_weights(source, target, interpolation);
        for (int i = 0; i < target; ++i) {
            for (int j = axis.first[static_cast<std::size_t>(i)]; j < axis.end(i); ++j) {
                const std::int32_t units = axis.of(i)[j - axis.first[static_cast<std::size_t>(i)]];
                entry(i, j, static_cast<float>(units) * unit);
            }
        }
    }
}

// One axis with its padding: a matrix of `length` × `source`, as its rows or as its columns.
std::vector<float> axis_matrix(int source, int before, int inner, int length, const Preprocessing& preprocessing,
                               bool transposed) {
    std::vector<float> resized(static_cast<std::size_t>(inner) * static_cast<std::size_t>(source));
    for_each_weight(source, inner, preprocessing.interpolation, [&](int i, int j, float weight) {
        resized[static_cast<std::size_t>(i) * static_cast<std::size_t>(source) + static_cast<std::size_t>(j)] = weight;
    });
    const std::vector<int> shown = padded_axis(before, inner, length, preprocessing.pad_mode);
    std::vector<float> matrix(static_cast<std::size_t>(length) * static_cast<std::size_t>(source));
    const std::size_t row_step = transposed ? 1 : static_cast<std::size_t>(source);
    const std::size_t column_step = transposed ? static_cast<std::size_t>(length) : 1;
    for (std::size_t i = 0; i < shown.size(); ++i) {
        if (shown[i] < 0) {
            continue;  // padding that is black has no weights
        }
        const float* from = resized.data() + static_cast<std::size_t>(shown[i]) * static_cast<std::size_t>(source);
        for (std::size_t j = 0; j < static_cast<std::size_t>(source); ++j) {
            matrix[i * row_step + j * column_step] = from[j];
        }
    }
    return matrix;
}

ResizeMatrices matrices(Size image, int rows_left, const Preprocessing& preprocessing) {
    const PaddedBox box = padded_box(image, preprocessing);
    const Size size = preprocessing.size;
    ResizeMatrices result;
    result.source = {rows_left, image.width};
    result.target = size;
    result.rows = axis_matrix(rows_left, box.top, box.size.height, size.height, preprocessing, false);
    result.columns = axis_matrix(image.width, box.left, box.size.width, size.width, preprocessing, true);
    return result;
}

}  // namespace

ResizeMatrices resize_matrices(Size image, const Preprocessing& preprocessing) {
    return matrices(image, image.height, preprocessing);
}

bool needs_rows_first(Size image, const Preprocessing& preprocessing) noexcept {
    return rows_first(image, padded_box(image, preprocessing).size, preprocessing.interpolation);
}

Size rows_done(Size image, const Preprocessing& preprocessing) noexcept {
    return {padded_box(image, preprocessing).size.height, image.width};
}

ResizeMatrices resize_matrices_after_rows(Size image, const Preprocessing& preprocessing) {
    return matrices(image, rows_done(image, preprocessing).height, preprocessing);
}

}  // namespace holocron::detail
