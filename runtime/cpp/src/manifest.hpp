/// \file
/// `manifest.json`: what a bundle contains and how to feed it. The format is written down in docs/bundle.md.
///
/// Parsing is strict, as in runtime/manifest.py: an unknown schema version, an unknown key, a missing key, a value of
/// the wrong type, or a path that leaves the bundle is a BundleError with the same sentence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "holocron/model.hpp"
#include "holocron/tensor.hpp"
#include "post_processing.hpp"
#include "preprocessing.hpp"

namespace holocron::detail {

inline constexpr std::int64_t kSchemaVersion = 1;
inline constexpr const char* kManifestName = "manifest.json";
/// Key of an ONNX file's `metadata_props` under which the manifest (without artefacts) is repeated.
inline constexpr const char* kMetadataKey = "holocron.manifest";
/// Key of an ONNX file's `metadata_props` for its precision and scheme in one word.
inline constexpr const char* kVariantKey = "holocron.variant";

/// Names of the inputs of a network that takes frames.
inline constexpr const char* kFrameInput = "frame";
inline constexpr const char* kRowsInput = "rows";
inline constexpr const char* kColumnsInput = "columns";

/// The frames that a network takes whose preprocessing is part of its graph: uint8 (N, h, w, 3).
struct FrameSpec {
    bool bgr = false;    ///< order of the channels: blue first, or red first
    Size size;           ///< largest height and width in pixels; the only ones if the size is fixed
    bool fixed = false;  ///< whether every frame has that size; if not, the network takes resize matrices too
};

/// Other GPUs that an engine is for.
enum class HardwareCompatibility { None, AmperePlus, SameComputeCapability };

/// What a serialized engine was built with: it opens nowhere else.
struct EngineInfo {
    std::string library;             ///< `"tensorrt"` or `"tensorrt_rtx"`
    std::string version;             ///< the library's, e.g. `"10.3.0"`
    std::string compute_capability;  ///< of the GPU that it is for, e.g. `"8.7"`
    int max_batch = 1;               ///< largest batch of its optimization profile
    HardwareCompatibility hardware_compatibility = HardwareCompatibility::None;
    bool version_compatible = false;  ///< whether later versions of the same major version open it too
    bool stripped = false;            ///< whether it gets its weights from the bundle's ONNX file when it is opened
    std::optional<int> dla_core;      ///< the deep learning accelerator that it is for; nothing for the GPU
};

/// One file of the bundle that a backend opens.
struct Artefact {
    std::string file;                  ///< path relative to the bundle, with `/`
    bool is_engine = false;            ///< a serialized engine, or an ONNX file
    std::string precision;             ///< `"fp32"`, `"fp16"` or `"int8"`
    std::string scheme;                ///< quantization scheme of an int8 artefact, `"cpu"` or `"trt"`; empty otherwise
    std::uint64_t size = 0;            ///< bytes
    std::string sha256;                ///< 64 lower-case hexadecimal digits
    std::optional<EngineInfo> engine;  ///< what an engine was built with

    /// Precision and scheme in one word: `"fp32"`, `"fp16"`, `"int8.cpu"`, `"int8.trt"`.
    [[nodiscard]] std::string variant() const { return scheme.empty() ? precision : precision + "." + scheme; }
};

/// All that a program must know of a bundle.
struct Manifest {
    std::string name;  ///< the model's
    Task task = Task::Classification;
    Labels labels;
    std::vector<TensorSpec> inputs;
    std::vector<TensorSpec> outputs;
    Preprocessing preprocessing;
    std::vector<Artefact> artefacts;                ///< empty in an ONNX file's own metadata
    std::optional<FrameSpec> frame;                 ///< nothing if the network takes what preprocessing gives
    std::optional<PostProcessing> post_processing;  ///< nothing if the graph gives the network's own outputs
};

/// The inputs of a network that takes frames.
///
/// \param frame which frames it takes
/// \param preprocessing gives the size that they are resized to
/// \return the frame, and where its size is not fixed the matrices that resize it
[[nodiscard]] std::vector<TensorSpec> frame_inputs(const FrameSpec& frame, const Preprocessing& preprocessing);

/// Parse and check a manifest.
///
/// \param text JSON
/// \param where what to call it in an error
/// \throws BundleError if it is not a manifest of this version, with what is wrong
[[nodiscard]] Manifest parse_manifest(std::string_view text, const std::string& where = kManifestName);

/// Read and check the manifest of a bundle's folder. The artefacts themselves are not read.
///
/// \throws BundleError if there is none, or it is not valid
[[nodiscard]] Manifest read_manifest(const std::filesystem::path& bundle);

}  // namespace holocron::detail
