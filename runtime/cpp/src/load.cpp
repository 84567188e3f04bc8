#include <algorithm>
#include <cctype>
#include <iterator>
#include <optional>

#include "bundle.hpp"
#include "cpu.hpp"
#include "engines.hpp"
#include "holocron/model.hpp"
#include "model_impl.hpp"
#include "text.hpp"

namespace holocron {

namespace {

using detail::BackendEntry;
using detail::Executable;
using detail::joined;
using detail::repr;
using detail::SessionOptions;
using detail::Source;

constexpr int kMostContexts = 64;

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

std::string or_none(const std::vector<std::string>& names) { return names.empty() ? "none" : joined(names); }

std::string checked_precision(const std::string& precision) {
    static const std::vector<std::string> known{"fp32", "fp16", "int8", "int8.cpu", "int8.trt"};
    const std::string wanted = precision == "float32" ? "fp32" : precision == "float16" ? "fp16" : precision;
    if (!wanted.empty() && std::find(known.begin(), known.end(), wanted) == known.end()) {
        throw BackendError("there is no precision " + repr(precision) + ": expected one of " + joined(known));
    }
    return wanted;
}

/// The library of a bundle that has nothing but engines of one: nothing else opens it, so what is said is why that does
/// not.
std::string only_library(const Source& source) {
    if (!source.graphs.empty()) {
        return {};
    }
    const std::string& first = source.engines.front().engine->library;
    const bool same = std::all_of(source.engines.begin(), source.engines.end(),
                                  [&](const auto& artefact) { return artefact.engine->library == first; });
    return same ? first : std::string();
}

/// Backends to try, the best first.
std::vector<std::string> candidates(const std::string& backend, const std::string& device) {
    if (!backend.empty()) {
        const std::string reason = detail::unavailable(detail::backend_entry(backend));
        if (!reason.empty()) {
            throw BackendError(reason + "; available here: " + or_none(available_backends()));
        }
        return {backend};
    }
    const auto names = available_backends();
    if (names.empty()) {
        std::vector<std::string> reasons;
        for (const auto name : detail::preferred_backends()) {
            const auto& entry = detail::backend_entry(name);
            if (!entry.gpu) {
                reasons.push_back(detail::unavailable(entry));
            }
        }
        throw BackendError("there is no backend to run the network: " + joined(reasons, "; "));
    }
    if (device.empty()) {
        return names;
    }
    const std::string text = lower(device);
    const bool on_gpu = text.find_first_not_of("0123456789") == std::string::npos || text.rfind("cuda", 0) == 0;
    std::vector<std::string> fitting;
    std::copy_if(names.begin(), names.end(), std::back_inserter(fitting), [&](const std::string& name) {
        return detail::backend_entry(name).gpu == on_gpu && (name != "onnxruntime" || text == "cpu");
    });
    if (fitting.empty()) {
        throw BackendError("no backend here runs on the device " + repr(device) + "; available here: " + joined(names));
    }
    return fitting;
}

/// Which of the ONNX files to open.
std::string chosen_variant(const Source& source, const std::string& wanted, const BackendEntry& backend) {
    if (source.graphs.empty()) {
        throw BackendError(source.path.string() + " has no ONNX file, which " + std::string(backend.name) +
                           " opens: export the model again");
    }
    if (wanted.empty()) {
        const auto found = std::find_if(backend.variants.begin(), backend.variants.end(),
                                        [&](std::string_view v) { return source.graph(v) != nullptr; });
        return found == backend.variants.end() ? source.graphs.front().first : std::string(*found);
    }
    const std::string variant = wanted == "int8" ? "int8." + std::string(backend.int8_scheme) : wanted;
    if (source.graph(variant) == nullptr) {
        const std::string suits =
            variant == wanted ? "" : ", which " + wanted + " means on " + std::string(backend.name);
        throw BackendError(source.path.string() + " has no " + variant + suits + ": it has " +
                           joined(source.variants()));
    }
    return variant;
}

struct OpenedNetwork {
    std::shared_ptr<Executable> network;
    Model::Impl::Opened opened;
};

OpenedNetwork open_engine(const Source& source, const std::string& wanted, const BackendEntry& backend,
                          const SessionOptions& options) {
    if (!source.is_folder) {
        throw BackendError(source.path.string() + " is an ONNX file, and " + std::string(backend.name) +
                           " opens engines: open the bundle's folder");
    }
    std::vector<std::string> variants(backend.variants.begin(), backend.variants.end());
    if (!wanted.empty()) {
        variants = {wanted == "int8" ? "int8.trt" : wanted};
    }
    auto [artefact, network] = detail::open_engine(source, backend, variants, options);
    return {
        std::move(network),
        {std::string(backend.name), artefact.variant(), artefact.file, artefact.engine->max_batch, options.threads}};
}

OpenedNetwork open_graph(const Source& source, const std::string& wanted, const BackendEntry& backend,
                         const SessionOptions& options) {
    const std::string variant = chosen_variant(source, wanted, backend);
    detail::Network network;
    network.file = source.file(variant);  // a changed file is an error, not a reason to take another
    network.variant = variant;
    return {backend.open(network, options),
            {std::string(backend.name), variant, source.graph(variant)->file, std::nullopt, options.threads}};
}

}  // namespace

Model load(const std::filesystem::path& path, const LoadOptions& options) {
    if (options.engine.contexts < 1 || options.engine.contexts > kMostContexts) {
        throw ArgumentError("contexts is " + std::to_string(options.engine.contexts) + ", expected 1 to " +
                            std::to_string(kMostContexts));
    }
    if (options.concurrency < 1 || options.concurrency > 1024) {
        throw ArgumentError("concurrency is " + std::to_string(options.concurrency) + ", expected 1 to 1024");
    }
    const SessionOptions session{detail::check_threads(options.threads), options.concurrency, options.device,
                                 options.engine};
    const Source source = detail::open_source(path);
    const std::string wanted = checked_precision(options.precision);
    const std::string backend = options.backend.empty() ? only_library(source) : options.backend;
    std::optional<BackendError> first_error;
    for (const auto& name : candidates(backend, options.device)) {
        try {
            const auto& entry = detail::backend_entry(name);
            auto [network, opened] = entry.opens_engines ? open_engine(source, wanted, entry, session)
                                                         : open_graph(source, wanted, entry, session);
            return Model(std::make_shared<const Model::Impl>(source.manifest, std::move(network), std::move(opened)));
        } catch (const BackendError& e) {
            first_error = first_error ? first_error : BackendError(e.what());
        }
    }
    throw BackendError(*first_error);
}

}  // namespace holocron
