#include "convert.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace holocron::detail {

namespace {

template <typename To, typename From>
To same_bits(From value) noexcept {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof(result));
    return result;
}

template <typename T>
void cast(const TensorView& view, std::size_t first, std::size_t count, float* out) {
    const T* values = static_cast<const T*>(view.data) + first;
    std::transform(values, values + count, out, [](T value) { return static_cast<float>(value); });
}

/// Whether no value has an exponent of ones only: integers, so that the compiler vectorizes it.
template <typename Bits>
bool no_exponent_is(const void* data, std::size_t count, Bits ones) {
    const auto* bits = static_cast<const Bits*>(data);
    Bits found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        found = static_cast<Bits>(found | static_cast<Bits>((bits[i] & ones) == ones ? 1 : 0));
    }
    return found == 0;
}

}  // namespace

float half_to_float(std::uint16_t half) noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16U;
    const std::uint32_t exponent = (half >> 10U) & 0x1FU;
    const std::uint32_t fraction = half & 0x3FFU;
    if (exponent == 0) {  // zero and subnormal: fraction · 2⁻²⁴
        const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    const std::uint32_t wide = exponent == 0x1F ? 0xFFU : exponent + 112U;
    return same_bits<float>(sign | (wide << 23U) | (fraction << 13U));
}

std::uint16_t float_to_half(float value) noexcept {
    const auto bits = same_bits<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16U) & 0x8000U;
    const float magnitude = std::abs(value);
    std::uint32_t result = 0;
    if (std::isnan(value)) {
        result = 0x7E00;
    } else if (magnitude >= 65520.0F) {  // half way from the largest to what would come next
        result = 0x7C00;
    } else if (magnitude < 6.103515625e-05F) {  // 2⁻¹⁴: subnormal, whole multiples of 2⁻²⁴
        result = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 24)));
    } else {
        const std::uint32_t kept = bits & 0x7FFFFFFFU;
        const std::uint32_t rounded = kept + 0xFFFU + ((kept >> 13U) & 1U);
        result = (rounded >> 13U) - (112U << 10U);
    }
    return static_cast<std::uint16_t>(sign | result);
}

void to_floats(const TensorView& view, std::size_t first, std::size_t count, float* out) {
    switch (view.type) {
        case ElementType::Float32: {
            const auto* values = static_cast<const float*>(view.data) + first;
            std::copy(values, values + count, out);
            break;
        }
        case ElementType::Float16: {
            const auto* values = static_cast<const std::uint16_t*>(view.data) + first;
            std::transform(values, values + count, out, half_to_float);
            break;
        }
        case ElementType::Float64:
            cast<double>(view, first, count, out);
            break;
        case ElementType::Int64:
            cast<std::int64_t>(view, first, count, out);
            break;
        case ElementType::Int32:
            cast<std::int32_t>(view, first, count, out);
            break;
        case ElementType::Int8:
            cast<std::int8_t>(view, first, count, out);
            break;
        case ElementType::UInt8:
        case ElementType::Bool:
            cast<std::uint8_t>(view, first, count, out);
            break;
    }
}

void from_floats(const float* values, std::size_t count, const MutableTensorView& view, std::size_t first) {
    if (view.type == ElementType::Float32) {
        std::copy(values, values + count, static_cast<float*>(view.data) + first);
    } else if (view.type == ElementType::Float64) {
        std::copy(values, values + count, static_cast<double*>(view.data) + first);
    } else if (view.type == ElementType::Float16) {
        std::transform(values, values + count, static_cast<std::uint16_t*>(view.data) + first, float_to_half);
    } else {
        throw BundleError("a network of images takes floating-point numbers, this one takes " +
                          std::string(to_string(view.type)) + "; export the model again");
    }
}

bool all_finite(const TensorView& view) {
    const std::size_t count = element_count(view.shape);
    switch (view.type) {
        case ElementType::Float32:
            return no_exponent_is<std::uint32_t>(view.data, count, 0x7F800000U);
        case ElementType::Float64:
            return no_exponent_is<std::uint64_t>(view.data, count, 0x7FF0000000000000ULL);
        case ElementType::Float16:
            return no_exponent_is<std::uint16_t>(view.data, count, std::uint16_t{0x7C00});
        default:
            return true;
    }
}

}  // namespace holocron::detail
