/// \file
/// GPUs as they are asked for.
#pragma once

#include <string>

namespace holocron::detail {

/// The number of a GPU that was asked for.
///
/// \param device its number, `"cuda"` or `"cuda:1"`; empty for the first
/// \param count how many there are
/// \throws BackendError if there is no such GPU, with those that there are
[[nodiscard]] int gpu_index(const std::string& device, int count);

}  // namespace holocron::detail
