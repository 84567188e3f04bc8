/// \file
/// Values in the text of errors, as the Python runtime writes them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "holocron/tensor.hpp"

namespace holocron::detail {

/// Python's `repr` of a string: quoted, with control characters and quotes escaped. Bytes that are not UTF-8 are
/// escaped.
[[nodiscard]] std::string repr(std::string_view text);

/// Python's `repr` of a float: the shortest digits that give it back.
[[nodiscard]] std::string repr(double number);

/// The first and the last characters of a string with dots between them where it is long: Python's `reprlib.repr`.
[[nodiscard]] std::string shortened_repr(std::string_view text);

/// Words with commas between them.
[[nodiscard]] std::string joined(const std::vector<std::string>& words, std::string_view separator = ", ");

/// Names of tensors, quoted, with commas between them.
[[nodiscard]] std::string quoted_names(const std::vector<TensorSpec>& specs);

/// A shape as Python writes a tuple: `('batch', 3, 224, 224)`, `(4,)`.
[[nodiscard]] std::string tuple(const std::vector<Dimension>& shape);
[[nodiscard]] std::string tuple(const Shape& shape);

/// A library's error in one line of at most 300 characters.
[[nodiscard]] std::string one_line(std::string_view error);

}  // namespace holocron::detail
