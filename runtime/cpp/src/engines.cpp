#include "engines.hpp"

#include <algorithm>
#include <cstddef>

#include "text.hpp"

namespace holocron::detail {

namespace {

constexpr const char* kRemedy = "export the bundle here with --trt or --rtx";
constexpr int kMaxNumberDigits = 9;

using Numbers = std::vector<int>;

/// The numbers that a version begins with: 10, 3, 0 of "10.3.0"; 11, 0 of "11.0.rc1".
Numbers version_numbers(std::string_view version) {
    Numbers numbers;
    while (!version.empty()) {
        const std::size_t dot = std::min(version.find('.'), version.size());
        const auto part = version.substr(0, dot);
        if (part.empty() || part.size() > kMaxNumberDigits ||
            part.find_first_not_of("0123456789") != std::string_view::npos) {
            break;
        }
        numbers.push_back(std::stoi(std::string(part)));
        version.remove_prefix(std::min(dot + 1, version.size()));
    }
    return numbers;
}

Numbers first_of(Numbers numbers, std::size_t count) {
    numbers.resize(std::min(numbers.size(), count));
    return numbers;
}

std::string title_of(std::string_view library) {
    if (library == "tensorrt") {
        return "TensorRT";
    }
    return library == "tensorrt_rtx" ? "TensorRT-RTX" : std::string(library);
}

std::shared_ptr<Executable> open_artefact(const Source& source, const BackendEntry& backend, const Artefact& artefact,
                                          const SessionOptions& options) {
    Network network;
    network.file = source.path / artefact.file;
    network.variant = artefact.variant();
    network.engine = artefact.engine;
    if (artefact.engine->stripped) {
        const auto* graph = source.graph(artefact.variant());
        if (graph == nullptr) {
            throw BackendError(source.path.string() + " has no ONNX file in " + artefact.variant() +
                               ": export the model again");
        }
        network.weights = read_artefact(source.path, *graph);
    }
    network.plan = read_artefact(source.path, artefact);
    network.cache = source.path / (artefact.file + ".cache");
    return backend.open(network, options);
}

}  // namespace

std::string engine_problem(const EngineInfo& info, const EngineHost& host) {
    const Numbers built = first_of(version_numbers(info.version), 3);
    const Numbers here = first_of(version_numbers(host.version), 3);
    const bool later = first_of(built, 1) == first_of(here, 1) && built <= here;
    const bool same_version = built == here || (info.version_compatible && later);
    bool same_gpu = host.compute_capability && info.compute_capability == *host.compute_capability;
    if (!same_gpu && host.compute_capability && info.hardware_compatibility == HardwareCompatibility::AmperePlus) {
        same_gpu = version_numbers(*host.compute_capability) >= Numbers{8, 0};
    }
    if (same_version && same_gpu) {
        return {};
    }
    const std::string title = title_of(info.library);
    return "was built with " + title + " " + info.version + " for compute capability " + info.compute_capability +
           ", here are " + title + " " + host.version + " and " + host.compute_capability.value_or("an unknown GPU");
}

std::pair<Artefact, std::shared_ptr<Executable>> open_engine(const Source& source, const BackendEntry& backend,
                                                             const std::vector<std::string>& variants,
                                                             const SessionOptions& options) {
    const EngineHost host = backend.host(options.device);
    std::vector<std::string> problems;
    for (const auto& variant : variants) {
        for (const auto& artefact : source.engines) {
            if (artefact.engine->library != backend.name || artefact.variant() != variant) {
                continue;
            }
            const std::string problem = engine_problem(*artefact.engine, host);
            if (problem.empty()) {
                try {
                    return {artefact, open_artefact(source, backend, artefact, options)};
                } catch (const BackendError& e) {
                    throw BackendError(artefact.file + ": " + e.what() + "; export the bundle here again");
                }
            }
            problems.push_back(artefact.file + " " + problem);
        }
    }
    if (!problems.empty()) {
        throw BackendError(joined(problems, "; ") + ": " + kRemedy);
    }
    throw BackendError(source.path.string() + " has no engine of " + title_of(backend.name) + " in " +
                       joined(variants) + ": " + kRemedy);
}

}  // namespace holocron::detail
