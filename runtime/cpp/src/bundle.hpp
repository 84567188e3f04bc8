/// \file
/// What lies at a path: a bundle's folder, or a lone ONNX file; and its files, checked before they are opened.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "manifest.hpp"

namespace holocron::detail {

/// Where an artefact lies, after checking that it is the file that the manifest describes.
///
/// \param bundle the bundle's folder
/// \param artefact one of its manifest's artefacts
/// \throws BundleError if the file is missing, leaves the bundle, or has another size or SHA-256
[[nodiscard]] std::filesystem::path artefact_path(const std::filesystem::path& bundle, const Artefact& artefact);

/// An artefact's bytes, after the same checks. The bytes that are checked are those that are returned: nobody can
/// change the file in between.
[[nodiscard]] std::string read_artefact(const std::filesystem::path& bundle, const Artefact& artefact);

/// A manifest, an ONNX file for each variant, and engines.
struct Source {
    std::filesystem::path path;  ///< the folder, or the lone ONNX file
    Manifest manifest;
    std::vector<std::pair<std::string, Artefact>> graphs;  ///< by variant, in the manifest's order
    std::vector<Artefact> engines;
    bool is_folder = true;

    /// The ONNX file of a variant, which there must be; checked. \throws BundleError if it is not as the manifest says
    [[nodiscard]] std::filesystem::path file(const std::string& variant) const;
    /// The ONNX file of a variant; null if there is none.
    [[nodiscard]] const Artefact* graph(std::string_view variant) const;
    /// Variants of the ONNX files.
    [[nodiscard]] std::vector<std::string> variants() const;
};

/// Look at a path.
///
/// \param path a bundle's folder, an ONNX file out of one, or an engine in one
/// \throws BundleError if there is no bundle, or its manifest is not valid
[[nodiscard]] Source open_source(const std::filesystem::path& path);

}  // namespace holocron::detail
