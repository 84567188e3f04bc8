/// \file
/// UTF-8, as far as errors and manifests need it.
#pragma once

#include <string>
#include <string_view>

namespace holocron::detail {

/// Code points of UTF-8 text. A byte that is not part of any becomes U+DC00 plus its value, as in Python's file names.
[[nodiscard]] std::u32string from_utf8(std::string_view text);

/// UTF-8 of code points; those that `from_utf8` made of stray bytes become those bytes again.
[[nodiscard]] std::string to_utf8(const std::u32string& text);

/// Whether text is UTF-8 throughout.
[[nodiscard]] bool is_utf8(std::string_view text);

/// Whether a character shows as itself in an error: no control or format character, no space but the plain one.
[[nodiscard]] bool is_printable(char32_t c) noexcept;

}  // namespace holocron::detail
