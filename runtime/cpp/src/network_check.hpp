/// \file
/// Whether what is opened and what is fed is what the manifest describes and the network takes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backends/backend.hpp"
#include "manifest.hpp"

namespace holocron::detail {

/// Check that inputs and outputs are of the names, element types and shapes that the manifest says.
///
/// \return the network's batch if that is fixed
/// \throws BundleError if it is another network
[[nodiscard]] std::optional<std::int64_t> check_network(const Manifest& manifest, const Executable& network);

/// Check what is about to be fed to a network, so that no backend sees what it may misread.
///
/// \return the tensors in the order of the network's inputs
/// \throws InputError if a name, element type, shape or place is wrong, or a value in host memory is NaN or infinite
[[nodiscard]] std::vector<TensorView> check_feeds(const Executable& network, const TensorViews& feeds);

}  // namespace holocron::detail
