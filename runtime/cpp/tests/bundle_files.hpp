/// \file
/// Bundles small enough to write for every test.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace holocron::tests {

/// A folder of its own that goes with the object.
class TemporaryFolder {
 public:
    TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

 private:
    std::filesystem::path path_;
};

void write_file(const std::filesystem::path& path, const std::string& bytes);

/// An ONNX file whose logits are the means of the three channels of an image of `size` pixels a side.
///
/// \param batch of its input; 0 for any
/// \param manifest for its metadata; empty for none
[[nodiscard]] std::string mean_colour_network(std::int64_t size, std::int64_t batch = 0,
                                              const std::string& manifest = {});

/// A manifest of such a network, without artefacts: labels red, green and blue.
[[nodiscard]] nlohmann::json mean_colour_manifest(int size);

/// An entry of `artefacts` for bytes.
[[nodiscard]] nlohmann::json artefact_entry(const std::string& file, const std::string& bytes);

/// Write a bundle with such a network. \return its manifest
nlohmann::json write_mean_colour_bundle(const std::filesystem::path& folder, int size = 8, std::int64_t batch = 0);

}  // namespace holocron::tests
