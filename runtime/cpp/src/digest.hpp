/// \file
/// SHA-256, by OpenSSL.
#pragma once

#include <string>
#include <string_view>

#include "files.hpp"

namespace holocron::detail {

/// SHA-256 of bytes as 64 lower-case hexadecimal digits.
[[nodiscard]] std::string sha256_of(std::string_view bytes);

/// SHA-256 of a file from its current position on, read in pieces. \throws FileError if it cannot be read
[[nodiscard]] std::string sha256_of(const File& file);

}  // namespace holocron::detail
