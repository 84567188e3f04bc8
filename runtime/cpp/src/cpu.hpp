/// \file
/// What the processor can do, as far as a backend's settings depend on it.
#pragma once

#include <string>
#include <string_view>

namespace holocron::detail {

/// Whether the feature flags, as Linux names them, have INT8 dot products (VNNI or AMX).
[[nodiscard]] bool flags_have_int8_dot_product(std::string_view flags);

/// Whether an x86 processor multiplies uint8 by int8 without saturating.
///
/// Older ones add two products of 8 bits in 16 bits: what exceeds 32767 is cut off, and the answer of an INT8 network
/// is wrong without notice.
[[nodiscard]] bool has_int8_dot_product();

/// Whether this is an x86 processor.
[[nodiscard]] constexpr bool is_x86() noexcept {
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
    return true;
#else
    return false;
#endif
}

/// Number of threads that a network gets when none is asked for: the physical cores that this process may run on, or
/// the container's share of processor time where that is less.
[[nodiscard]] int default_threads();

/// The number of threads asked for, or the default for 0.
///
/// \param threads how many
/// \param name what to call it in an error
/// \throws ArgumentError if it is below 0 or above 1024
[[nodiscard]] int check_threads(int threads, const std::string& name = "threads");

}  // namespace holocron::detail
