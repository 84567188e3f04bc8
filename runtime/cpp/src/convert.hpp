/// \file
/// Between element types.
#pragma once

#include <cstddef>
#include <cstdint>

#include "holocron/tensor.hpp"

namespace holocron::detail {

/// The float32 of a float16, exactly.
[[nodiscard]] float half_to_float(std::uint16_t half) noexcept;

/// The nearest float16, of two as near the even one; what is too large becomes infinite.
[[nodiscard]] std::uint16_t float_to_half(float value) noexcept;

/// Elements of a tensor on the host, as float32.
///
/// \param first of the elements
/// \param count how many
/// \param out as many values
void to_floats(const TensorView& view, std::size_t first, std::size_t count, float* out);

/// Write float32 values into a tensor on the host, converted to its type.
///
/// \throws BundleError if its elements are not floating-point
void from_floats(const float* values, std::size_t count, const MutableTensorView& view, std::size_t first);

/// Whether no element is NaN or infinite; true of whole numbers.
[[nodiscard]] bool all_finite(const TensorView& view);

}  // namespace holocron::detail
