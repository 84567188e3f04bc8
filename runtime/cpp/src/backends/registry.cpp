#include <string>

#include "backends/backend.hpp"
#include "cpu.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

const std::vector<std::string_view> kCpuVariants{"int8.cpu", "fp32", "fp16", "int8.trt"};
// CUDA kernels have no INT8 convolution: a Q/DQ graph runs in floating point there, slower than fp16 itself.
const std::vector<std::string_view> kCudaVariants{"fp16", "fp32", "int8.trt", "int8.cpu"};
const std::vector<std::string_view> kEngineVariants{"int8.trt", "fp16", "fp32"};

std::vector<BackendEntry> make_backends() {
    std::vector<BackendEntry> all{
        {"onnxruntime", false, "cpu", kCpuVariants, false, nullptr, nullptr, nullptr},
        {"openvino", false, "cpu", kCpuVariants, false, nullptr, nullptr, nullptr},
        {"onnxruntime-cuda", true, "trt", kCudaVariants, false, nullptr, nullptr, nullptr},
        {"tensorrt", true, "trt", kEngineVariants, true, nullptr, nullptr, nullptr},
        {"tensorrt_rtx", true, "trt", kEngineVariants, true, nullptr, nullptr, nullptr},
    };
#ifdef HOLOCRON_HAS_ONNXRUNTIME
    all[0].problem = onnxruntime_problem;
    all[0].open = open_onnxruntime;
    all[2].problem = onnxruntime_cuda_problem;
    all[2].open = open_onnxruntime_cuda;
#endif
#ifdef HOLOCRON_HAS_OPENVINO
    all[1].problem = openvino_problem;
    all[1].open = open_openvino;
#endif
#ifdef HOLOCRON_HAS_TENSORRT
    all[3].problem = tensorrt_problem;
    all[3].open = open_tensorrt;
    all[3].host = tensorrt_host;
#endif
#ifdef HOLOCRON_HAS_TENSORRT_RTX
    all[4].problem = tensorrt_rtx_problem;
    all[4].open = open_tensorrt_rtx;
    all[4].host = tensorrt_rtx_host;
#endif
    return all;
}

}  // namespace

const std::vector<BackendEntry>& backends() {
    static const std::vector<BackendEntry> all = make_backends();
    return all;
}

const BackendEntry& backend_entry(std::string_view name) {
    std::vector<std::string> known;
    for (const auto& backend : backends()) {
        if (backend.name == name) {
            return backend;
        }
        known.emplace_back(backend.name);
    }
    throw BackendError("there is no backend " + repr(name) + ": expected one of " + joined(known));
}

std::string unavailable(const BackendEntry& backend) {
    if (backend.problem == nullptr) {
        return "this build of the runtime has no " + std::string(backend.name) +
               ": build it where the library's headers are found";
    }
    return backend.problem();
}

std::vector<std::string_view> preferred_backends() {
    // On the processor OpenVINO is several times faster than ONNX Runtime where there are INT8 dot products; elsewhere
    // it gains little, and its INT8 sums saturate, which ONNX Runtime avoids.
    if (has_int8_dot_product()) {
        return {"tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "openvino", "onnxruntime"};
    }
    return {"tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "onnxruntime", "openvino"};
}

}  // namespace holocron::detail

namespace holocron {

std::vector<std::string> available_backends() {
    std::vector<std::string> names;
    for (const auto name : detail::preferred_backends()) {
        if (detail::unavailable(detail::backend_entry(name)).empty()) {
            names.emplace_back(name);
        }
    }
    return names;
}

}  // namespace holocron
