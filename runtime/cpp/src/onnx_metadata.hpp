/// \file
/// The metadata of an ONNX file, read without reading the network.
#pragma once

#include <filesystem>
#include <map>
#include <string>

namespace holocron::detail {

/// The `metadata_props` of an ONNX file.
///
/// An ONNX file is one protocol-buffers message, `ModelProto`: a sequence of fields, each a key (number and wire type)
/// and a value that is either of fixed size or says its length. Only field 14 is read; the rest, the weights above all,
/// is skipped by seeking.
///
/// \throws BundleError if it cannot be read or is not an ONNX file
[[nodiscard]] std::map<std::string, std::string> read_onnx_metadata(const std::filesystem::path& path);

}  // namespace holocron::detail
