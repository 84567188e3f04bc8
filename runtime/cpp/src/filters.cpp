#include "filters.hpp"

#include <algorithm>
#include <cmath>

// Every step is in double precision and in Pillow's order: the last bit decides how a weight is rounded. The compiler
// must not fuse a product and a sum into one operation here (-ffp-contract=off).

namespace holocron::detail {
namespace {

constexpr double kPi = 3.14159265358979323846;

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) { return std::max(1.0 - std::abs(x), 0.0); }

double sinc(double x) {
    if (x == 0.0) {
        return 1.0;
    }
    const double scaled = kPi * x;
    return std::sin(scaled) / scaled;
}

double hamming(double x) {
    x = std::abs(x);
    if (x == 0.0) {
        return 1.0;  // less than what is below gives there
    }
    if (x >= 1.0) {
        return 0.0;
    }
    // Pillow has these two in single precision.
    constexpr double raised = 0.54F;
    constexpr double share = 0.46F;
    return sinc(x) * (raised + share * std::cos(kPi * x));
}

// Cubic convolution with a = -1/2 (Keys, IEEE Transactions on Acoustics, Speech and Signal Processing, 1981).
double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    if (x < 2.0) {
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    }
    return 0.0;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

std::int32_t rounded_units(double weight) {
    constexpr double one = 1 << kWeightBits;
    return static_cast<std::int32_t>(weight * one + (weight < 0.0 ? -0.5 : 0.5));
}

// The weights of a filter of some radius, which is stretched by the reduction.
template <double Filter(double)>
AxisWeights filter_weights(int source, int target, double radius) {
    const double scale = static_cast<double>(source) / target;
    const double stretch = std::max(scale, 1.0);
    const double support = radius * stretch;
    const double shrink = 1.0 / stretch;

    AxisWeights axis;
    axis.source = source;
    axis.target = target;
    const auto length = static_cast<std::size_t>(target);
    axis.first.resize(length);
    axis.count.resize(length);
    for (int i = 0; i < target; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int last = std::min(static_cast<int>(centre + support + 0.5), source);
        axis.first[static_cast<std::size_t>(i)] = first;
        axis.count[static_cast<std::size_t>(i)] = last - first;
        axis.taps = std::max(axis.taps, last - first);
    }

    axis.units.assign(length * static_cast<std::size_t>(axis.taps), 0);
    std::vector<double> weights(static_cast<std::size_t>(axis.taps));
    for (int i = 0; i < target; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = axis.first[static_cast<std::size_t>(i)];
        const int count = axis.count[static_cast<std::size_t>(i)];
        double total = 0.0;
        for (int j = 0; j < count; ++j) {
            const double weight = Filter((first + j - centre + 0.5) * shrink);
            weights[static_cast<std::size_t>(j)] = weight;
            total += weight;
        }
        std::int32_t* units = axis.units.data() + static_cast<std::ptrdiff_t>(i) * axis.taps;
        for (int j = 0; j < count; ++j) {
            const double weight = weights[static_cast<std::size_t>(j)];
            units[j] = rounded_units(total != 0.0 ? weight / total : weight);
        }
    }
    return axis;
}

}  // namespace

AxisWeights axis_weights(int source, int target, Interpolation interpolation) {
    switch (interpolation) {
        case Interpolation::Box:
            return filter_weights<box>(source, target, 0.5);
        case Interpolation::Hamming:
            return filter_weights<hamming>(source, target, 1.0);
        case Interpolation::Bicubic:
            return filter_weights<cubic>(source, target, 2.0);
        case Interpolation::Lanczos:
            return filter_weights<lanczos>(source, target, 3.0);
        case Interpolation::Nearest:  // has no weights: see nearest_pixels
        case Interpolation::Bilinear:
            break;
    }
    return filter_weights<triangle>(source, target, 1.0);
}

std::vector<int> nearest_pixels(int source, int target) {
    // Added up one by one as Pillow does: the rounding errors decide which pixel is the nearest where two are.
    const double scale = static_cast<double>(source) / target;
    std::vector<int> pixels(static_cast<std::size_t>(target));
    double position = 0.5 * scale;
    for (int& pixel : pixels) {
        const int nearest = static_cast<int>(position);
        pixel = nearest < source ? nearest : -1;
        position += scale;
    }
    return pixels;
}

}  // namespace holocron::detail
