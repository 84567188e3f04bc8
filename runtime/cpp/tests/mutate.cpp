// Mutated manifests and cut-off bundles: each is read, or is one clean error. Nothing else may happen.
//
//     holocron_mutate [COUNT [SEED]]

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "bundle_files.hpp"
#include "tasks/tasks.hpp"

namespace {

using holocron::BundleError;
using nlohmann::json;

constexpr std::uint64_t kDefaultCount = 3000;
constexpr std::uint64_t kManifestsABundle = 20;  // a bundle is written to disk, which takes longer

class Mutator {
 public:
    explicit Mutator(std::uint64_t seed) : random_(seed) {}

    std::size_t below(std::size_t bound) { return std::uniform_int_distribution<std::size_t>(0, bound - 1)(random_); }

    /// A few changes of bytes and of pieces of text.
    std::string operator()(std::string text) {
        if (below(2) == 0) {  // still JSON: what is behind the parser is tried too
            replace_token(text, below(text.size()));
            return text;
        }
        for (std::size_t changes = 1 + below(4); changes > 0 && !text.empty(); --changes) {
            const std::size_t at = below(text.size());
            const std::size_t length = 1 + below(std::min<std::size_t>(16, text.size() - at));
            switch (below(8)) {
                case 0:
                    text[at] = static_cast<char>(below(256));
                    break;
                case 1:
                    text[at] = static_cast<char>(static_cast<unsigned char>(text[at]) ^ (1U << below(8)));
                    break;
                case 2:
                    text.erase(at, length);
                    break;
                case 3:
                    text.insert(below(text.size()), text.substr(at, length));
                    break;
                case 4:
                    text.resize(at);
                    break;
                case 5:
                    text.insert(at, pieces_[below(pieces_.size())]);
                    break;
                case 6:
                    text.replace(at, length, pieces_[below(pieces_.size())]);
                    break;
                default:
                    replace_token(text, at);
                    break;
            }
        }
        return text;
    }

 private:
    /// Put another value in the place of a whole one, so that what comes is JSON and reaches the checks behind.
    void replace_token(std::string& text, std::size_t at) {
        const std::size_t begin = text.find_first_of(":[,", at);
        if (begin == std::string::npos) {
            return;
        }
        const std::size_t end = text.find_first_of(",]}", begin + 1);
        if (end != std::string::npos) {
            text.replace(begin + 1, end - begin - 1, pieces_[below(pieces_.size())]);
        }
    }

    std::mt19937_64 random_;
    const std::vector<std::string> pieces_{"null",
                                           "true",
                                           "-1",
                                           "0",
                                           "1",
                                           "2147483648",
                                           "9223372036854775807",
                                           "18446744073709551616",
                                           "1e308",
                                           "1e400",
                                           "-0",
                                           "0.5",
                                           "\"\"",
                                           "\"batch\"",
                                           "\"../x\"",
                                           "\"\\u0000\"",
                                           "\"\\ud800\"",
                                           "\"int8\"",
                                           "\"engine\"",
                                           "[]",
                                           "{}",
                                           "[[[[[[",
                                           "{\"a\":{\"a\":",
                                           "\"frame\"",
                                           "NaN",
                                           "\xff\xfe",
                                           "\xEF\xBB\xBF",
                                           "\"schema_version\":1,",
                                           std::string(1000, '['),
                                           std::string(5000, '9'),
                                           std::string("\0", 1)};
};

std::vector<std::string> seeds() {
    json plain = holocron::tests::mean_colour_manifest(8);
    json detector = plain;
    detector["task"] = "detection";
    detector["outputs"] = {{{"name", "boxes"}, {"dtype", "float32"}, {"shape", {"batch", 3, 4}}},
                           {{"name", "scores"}, {"dtype", "float32"}, {"shape", {"batch", 3}}},
                           {{"name", "labels"}, {"dtype", "int32"}, {"shape", {"batch", 3}}},
                           {{"name", "count"}, {"dtype", "int32"}, {"shape", {"batch"}}},
                           {{"name", "status"}, {"dtype", "int32"}, {"shape", {"batch"}}}};
    detector["post_processing"] = {{"kind", "detections"}, {"score_threshold", 0.25}, {"iou_threshold", 0.5},
                                   {"max_detections", 3},  {"candidates", 3},         {"steps", 4}};
    json frames = plain;
    frames["frame"] = {{"channels", "bgr"}, {"size", {480, 640}}, {"fixed", true}};
    frames["inputs"] = {{{"name", "frame"}, {"dtype", "uint8"}, {"shape", {"batch", 480, 640, 3}}}};
    json engine = holocron::tests::artefact_entry("a.engine", "y");
    engine["kind"] = "engine";
    engine["engine"] = {
        {"library", "tensorrt"}, {"version", "10.3.0"}, {"compute_capability", "8.7"}, {"max_batch", 4}};
    plain["artefacts"] = {holocron::tests::artefact_entry("model.onnx", "x"), engine};
    return {plain.dump(), detector.dump(), frames.dump()};
}

struct Counts {
    std::uint64_t read = 0;
    std::uint64_t refused = 0;
};

void read_manifest_text(const std::string& text, Counts& counts) {
    try {
        holocron::detail::check_task(holocron::detail::parse_manifest(text));
        ++counts.read;
    } catch (const BundleError&) {
        ++counts.refused;
    }
}

/// A bundle with a mutated file, opened as far as it goes without a backend.
void read_bundle(const std::filesystem::path& folder, const std::string& manifest, const std::string& network,
                 Counts& counts) {
    holocron::tests::write_file(folder / "manifest.json", manifest);
    holocron::tests::write_file(folder / "model.onnx", network);
    try {
        const auto source = holocron::detail::open_source(folder);
        for (const auto& artefact : source.manifest.artefacts) {
            static_cast<void>(holocron::detail::read_artefact(folder, artefact));
            static_cast<void>(holocron::detail::artefact_path(folder, artefact));
        }
        static_cast<void>(holocron::detail::open_source(folder / "model.onnx"));
        ++counts.read;
    } catch (const BundleError&) {
        ++counts.refused;
    }
}

void run(std::uint64_t count, std::uint64_t seed) {
    Mutator mutate(seed);
    const auto manifests = seeds();
    const std::string lone =
        holocron::tests::mean_colour_network(8, 0, holocron::tests::mean_colour_manifest(8).dump());
    auto manifest = holocron::tests::mean_colour_manifest(8);
    manifest["artefacts"].push_back(holocron::tests::artefact_entry("model.onnx", lone));
    const std::string whole = manifest.dump();
    const holocron::tests::TemporaryFolder folder;
    Counts texts;
    Counts bundles;
    for (std::uint64_t i = 0; i < count; ++i) {
        if (i % kManifestsABundle == 0) {
            const bool damaged_network = mutate.below(2) == 0;
            read_bundle(folder.path(), damaged_network ? whole : mutate(whole), damaged_network ? mutate(lone) : lone,
                        bundles);
            try {  // the same bytes without a manifest that knows their hash
                static_cast<void>(holocron::detail::open_source(folder.path() / "model.onnx"));
            } catch (const BundleError&) {
            }
        } else {
            read_manifest_text(mutate(manifests[mutate.below(manifests.size())]), texts);
        }
    }
    std::printf(
        "{\"seed\": %llu, \"manifests\": {\"read\": %llu, \"refused\": %llu}, \"bundles\": {\"read\": %llu, "
        "\"refused\": %llu}}\n",
        static_cast<unsigned long long>(seed), static_cast<unsigned long long>(texts.read),
        static_cast<unsigned long long>(texts.refused), static_cast<unsigned long long>(bundles.read),
        static_cast<unsigned long long>(bundles.refused));
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : kDefaultCount,
            argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
        return 0;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "not a clean error: %s\n", e.what());
        return 1;
    }
}
