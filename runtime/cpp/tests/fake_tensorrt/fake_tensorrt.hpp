/// \file
/// A small TensorRT that enforces the real one's rules, and the engines that it opens.
///
/// An element of an output is its number within its entry of the batch plus the sum of the bytes of that entry in all
/// inputs.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace fake {

struct PlanTensor {
    std::string name;
    nvinfer1::DataType type = nvinfer1::DataType::kFLOAT;
    std::vector<std::int64_t> smallest;  // of an output: with 0 for the batch
    std::vector<std::int64_t> largest;   // of an output: none
    nvinfer1::TensorLocation location = nvinfer1::TensorLocation::kDEVICE;
    nvinfer1::TensorFormat format = nvinfer1::TensorFormat::kLINEAR;
};

/// What a serialized engine holds.
struct Plan {
    std::vector<PlanTensor> inputs{{"input", nvinfer1::DataType::kFLOAT, {1, 3, 2, 2}, {4, 3, 2, 2}}};
    std::vector<PlanTensor> outputs{{"logits", nvinfer1::DataType::kFLOAT, {0, 5}, {}}};
    std::int64_t workspace = 1000;
    bool stripped = false;
    bool data_dependent = false;
    bool capturable = true;
    bool needs_host_code = false;

    [[nodiscard]] std::string serialize() const;
};

/// The plan of serialized bytes; nothing if they are none.
std::optional<Plan> parse_plan(const std::string& text);

/// The bytes of the ONNX file that a stripped engine takes its weights from.
extern const char* const kWeights;

/// Let a method return false or null after it succeeded so many times more, and log why.
void refuse(const std::string& method, int after = 0);

/// The state of the library. One test's; `reset` between two.
struct Library {
    int patch = 0;
    int minor = 3;
    std::map<std::string, int> refusals;
    std::map<std::string, int> alive;  // objects by the name of their interface
    int dla_core = -1;
    std::string cache = "kernels";  // what a runtime cache serializes to
    std::string known_cache;        // what one was given
    void reset();
};
Library& library();

}  // namespace fake
