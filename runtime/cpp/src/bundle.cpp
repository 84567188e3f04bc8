#include "bundle.hpp"

#include <algorithm>
#include <optional>
#include <system_error>

#include "digest.hpp"
#include "files.hpp"
#include "onnx_metadata.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace fs = std::filesystem;

namespace {

BundleError unreadable(const fs::path& path, const std::string& reason) {
    return BundleError("cannot read " + path.string() + ", which the manifest names: " + reason);
}

BundleError changed(const fs::path& path) {
    return BundleError(path.string() +
                       " does not have the SHA-256 that the manifest says: it was changed; copy the bundle again or "
                       "export it again");
}

bool is_below(const fs::path& path, const fs::path& folder) {
    const auto [in_folder, in_path] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
    return in_folder == folder.end() && in_path != path.end();
}

/// The path with links followed, which lies inside the bundle.
fs::path resolved_inside(const fs::path& bundle, const Artefact& artefact) {
    const fs::path path = bundle / plain_path(artefact.file);
    std::error_code error;
    fs::path resolved = fs::canonical(path, error);
    if (error) {
        throw unreadable(path, error.message());
    }
    const fs::path folder = fs::canonical(bundle, error);
    if (error) {
        throw unreadable(path, error.message());
    }
    if (!is_below(resolved, folder)) {
        throw BundleError(repr(artefact.file) + " leads out of the bundle " + bundle.string() + ": refused");
    }
    return resolved;
}

void check_size(const fs::path& path, const File& file, const Artefact& artefact) {
    if (!file.is_regular()) {
        throw BundleError(path.string() + ", which the manifest names, is not a file");
    }
    if (file.size() != artefact.size) {
        throw BundleError(path.string() + " has " + std::to_string(file.size()) + " bytes where the manifest says " +
                          std::to_string(artefact.size) +
                          ": it was cut off or changed; copy the bundle again or export it again");
    }
}

Source open_folder(const fs::path& path) {
    Source source{path, read_manifest(path), {}, {}, true};
    for (const auto& artefact : source.manifest.artefacts) {
        if (artefact.is_engine) {
            source.engines.push_back(artefact);
        } else if (source.graph(artefact.variant()) == nullptr) {
            source.graphs.emplace_back(artefact.variant(), artefact);
        }
    }
    if (source.graphs.empty() && source.engines.empty()) {
        throw BundleError(path.string() + " has no ONNX file: export the model again");
    }
    return source;
}

/// An engine is opened with what the manifest beside it says, or not at all: it executes what is in it.
Source open_engine_file(const fs::path& path) {
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    std::optional<Manifest> manifest;
    try {
        manifest = read_manifest(folder);
    } catch (const BundleError&) {
        throw BundleError(
            path.string() +
            " is an engine without a manifest beside it, so nothing vouches for it and its labels are not "
            "known: open its bundle");
    }
    Source source{folder, std::move(*manifest), {}, {}, true};
    for (const auto& artefact : source.manifest.artefacts) {
        if (artefact.is_engine && artefact.file == path.filename().string()) {
            source.engines.push_back(artefact);
        }
    }
    if (source.engines.empty()) {
        throw BundleError(path.string() +
                          " is not in the manifest beside it, so nothing vouches for it: export the bundle again");
    }
    return source;
}

Source open_onnx_file(const fs::path& path) {
    const auto metadata = read_onnx_metadata(path);
    const auto text = metadata.find(kMetadataKey);
    if (text == metadata.end()) {
        throw BundleError(path.string() +
                          " is an ONNX file without Holocron Edge's metadata, so its labels and preprocessing are not "
                          "known: open the bundle's folder, or export the model with holocron-export");
    }
    const auto variant = metadata.find(kVariantKey);
    Source source{path, parse_manifest(text->second, "the metadata of " + path.string()), {}, {}, false};
    source.graphs.emplace_back(variant == metadata.end() ? "unknown" : variant->second, Artefact{});
    return source;
}

}  // namespace

fs::path artefact_path(const fs::path& bundle, const Artefact& artefact) {
    const fs::path path = bundle / plain_path(artefact.file);
    fs::path resolved = resolved_inside(bundle, artefact);
    try {
        const File file(resolved);
        check_size(path, file, artefact);
        if (sha256_of(file) != artefact.sha256) {
            throw changed(path);
        }
    } catch (const FileError& e) {
        throw unreadable(path, e.what());
    }
    return resolved;
}

std::string read_artefact(const fs::path& bundle, const Artefact& artefact) {
    const fs::path path = bundle / plain_path(artefact.file);
    std::string bytes;
    try {
        const File file(resolved_inside(bundle, artefact));
        check_size(path, file, artefact);
        bytes = file.read(artefact.size);
    } catch (const FileError& e) {
        throw unreadable(path, e.what());
    }
    if (bytes.size() != artefact.size || sha256_of(bytes) != artefact.sha256) {
        throw changed(path);
    }
    return bytes;
}

fs::path Source::file(const std::string& variant) const {
    return is_folder ? artefact_path(path, *graph(variant)) : path;
}

const Artefact* Source::graph(std::string_view variant) const {
    const auto found = std::find_if(graphs.begin(), graphs.end(), [&](const auto& g) { return g.first == variant; });
    return found == graphs.end() ? nullptr : &found->second;
}

std::vector<std::string> Source::variants() const {
    std::vector<std::string> names;
    for (const auto& [variant, artefact] : graphs) {
        names.push_back(variant);
    }
    return names;
}

Source open_source(const fs::path& given) {
    const fs::path path = plain_path(given);
    std::error_code error;
    const auto status = fs::status(path, error);
    const bool missing = status.type() == fs::file_type::not_found;
    if (error && !missing) {
        throw BundleError("cannot read " + path.string() + ": " + error.message());
    }
    if (fs::is_directory(status)) {
        return open_folder(path);
    }
    if (!fs::is_regular_file(status)) {
        throw BundleError(path.string() + " is not there: expected a bundle's folder or an ONNX file");
    }
    return path.extension() == ".engine" ? open_engine_file(path) : open_onnx_file(path);
}

}  // namespace holocron::detail
