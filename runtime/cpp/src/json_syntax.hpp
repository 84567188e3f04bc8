/// \file
/// Whether text is JSON (RFC 8259), and where it is not: in the words of the Python runtime, and of no parser's.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace holocron::detail {

/// Levels of lists and objects inside of each other that are accepted.
inline constexpr std::size_t kMaxJsonDepth = 512;

/// What keeps UTF-8 text from being JSON, the first thing of that kind; nothing if it is JSON.
[[nodiscard]] std::optional<std::string> json_mistake(std::string_view text);

}  // namespace holocron::detail
