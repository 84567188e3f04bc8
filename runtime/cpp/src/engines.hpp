/// \file
/// The engines of a bundle: which of them is for this machine, and opening it.
///
/// Opening an engine executes it. So its hash is compared with the manifest's first, on the very bytes that are opened.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.hpp"
#include "bundle.hpp"

namespace holocron::detail {

/// Why an engine is not for a machine, with what it was built for and what is there; empty if it is.
///
/// \param info what the engine was built with
/// \param host the same library and the GPU of the machine
[[nodiscard]] std::string engine_problem(const EngineInfo& info, const EngineHost& host);

/// Open the first engine that is for this machine.
///
/// \param source the bundle
/// \param backend of the library
/// \param variants precisions, the best first
/// \param options how to open it
/// \throws BundleError if a file is missing, cut off or changed
/// \throws BackendError if there is none for this machine, with what they are for; or it does not open
[[nodiscard]] std::pair<Artefact, std::shared_ptr<Executable>> open_engine(const Source& source,
                                                                           const BackendEntry& backend,
                                                                           const std::vector<std::string>& variants,
                                                                           const SessionOptions& options);

}  // namespace holocron::detail
