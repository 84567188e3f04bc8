#include "bundle_files.hpp"

#include <unistd.h>

#include <atomic>
#include <fstream>
#include <initializer_list>
#include <stdexcept>

#include "digest.hpp"

namespace holocron::tests {

namespace fs = std::filesystem;

namespace {

/// Writes a protocol-buffers message field by field.
class Message {
 public:
    Message& number(unsigned field, std::uint64_t value) {
        varint(field << 3U);
        varint(value);
        return *this;
    }
    Message& bytes(unsigned field, const std::string& value) {
        varint((field << 3U) | 2U);
        varint(value.size());
        data_ += value;
        return *this;
    }
    Message& message(unsigned field, const Message& value) { return bytes(field, value.data_); }
    [[nodiscard]] const std::string& data() const noexcept { return data_; }

 private:
    void varint(std::uint64_t value) {
        while (value >= 0x80) {
            data_ += static_cast<char>(static_cast<unsigned char>((value & 0x7FU) | 0x80U));
            value >>= 7U;
        }
        data_ += static_cast<char>(static_cast<unsigned char>(value));
    }

    std::string data_;
};

constexpr std::uint64_t kFloat = 1;  // TensorProto.FLOAT

Message value_info(const std::string& name, std::initializer_list<std::int64_t> extents) {
    Message shape;
    for (const auto extent : extents) {
        Message dimension;
        if (extent > 0) {
            dimension.number(1, static_cast<std::uint64_t>(extent));
        } else {
            dimension.bytes(2, "batch");
        }
        shape.message(1, dimension);
    }
    const Message tensor = Message().number(1, kFloat).message(2, shape);
    return Message().bytes(1, name).message(2, Message().message(1, tensor));
}

Message node(const std::string& operation, const std::string& input, const std::string& output) {
    return Message().bytes(1, input).bytes(2, output).bytes(4, operation);
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
    static std::atomic<int> count{0};
    path_ = fs::temp_directory_path() /
            ("holocron-tests-" + std::to_string(::getpid()) + "-" + std::to_string(count.fetch_add(1)));
    fs::create_directories(path_);
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

void write_file(const fs::path& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) {
        throw std::runtime_error("cannot write " + path.string());
    }
}

std::string mean_colour_network(std::int64_t size, std::int64_t batch, const std::string& manifest) {
    const Message graph = Message()
                              .message(1, node("GlobalAveragePool", "input", "pooled"))
                              .message(1, node("Flatten", "pooled", "logits"))
                              .bytes(2, "mean_colour")
                              .message(11, value_info("input", {batch, 3, size, size}))
                              .message(12, value_info("logits", {batch, 3}));
    Message model = Message().number(1, 8).message(7, graph).message(8, Message().bytes(1, "").number(2, 17));
    if (!manifest.empty()) {
        model.message(14, Message().bytes(1, "holocron.manifest").bytes(2, manifest));
        model.message(14, Message().bytes(1, "holocron.variant").bytes(2, "fp32"));
    }
    return model.data();
}

nlohmann::json mean_colour_manifest(int size) {
    return {{"schema_version", 1},
            {"name", "mean_colour"},
            {"task", "classification"},
            {"labels", {"red", "green", "blue"}},
            {"inputs", {{{"name", "input"}, {"dtype", "float32"}, {"shape", {"batch", 3, size, size}}}}},
            {"outputs", {{{"name", "logits"}, {"dtype", "float32"}, {"shape", {"batch", 3}}}}},
            {"preprocessing", {{"size", {size, size}}, {"mean", {0.0, 0.0, 0.0}}, {"std", {1.0, 1.0, 1.0}}}},
            {"artefacts", nlohmann::json::array()}};
}

nlohmann::json artefact_entry(const std::string& file, const std::string& bytes) {
    return {{"file", file},      {"kind", "onnx"},         {"precision", "fp32"},
            {"scheme", nullptr}, {"size", bytes.size()},   {"sha256", detail::sha256_of(bytes)},
            {"engine", nullptr}, {"verification", nullptr}};
}

nlohmann::json write_mean_colour_bundle(const fs::path& folder, int size, std::int64_t batch) {
    fs::create_directories(folder);
    const std::string bytes = mean_colour_network(size, batch);
    write_file(folder / "model.onnx", bytes);
    auto manifest = mean_colour_manifest(size);
    manifest["artefacts"].push_back(artefact_entry("model.onnx", bytes));
    write_file(folder / "manifest.json", manifest.dump());
    return manifest;
}

}  // namespace holocron::tests
