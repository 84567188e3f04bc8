// ONNX Runtime's backends, as far as they go without a GPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "backends/backend.hpp"
#include "bundle_files.hpp"
#include "fake_models.hpp"
#include "holocron/runtime.hpp"
#ifdef HOLOCRON_HAS_ONNXRUNTIME
#include "backends/cuda_driver.hpp"
#endif

using namespace holocron;
using tests::error_of;

namespace {

std::string refusal(const std::filesystem::path& path, const std::string& backend, const std::string& device = {}) {
    LoadOptions options;
    options.backend = backend;
    options.device = device;
    options.threads = 1;
    return error_of<BackendError>([&] { static_cast<void>(load(path, options)); });
}

bool begins_with(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

}  // namespace

#ifdef HOLOCRON_HAS_ONNXRUNTIME

TEST_CASE("ONNX Runtime runs a bundle on the processor, and nowhere else by that name") {
    const tests::TemporaryFolder folder;
    tests::write_mean_colour_bundle(folder.path());
    LoadOptions options;
    options.backend = "onnxruntime";
    options.threads = 1;
    const Model model = load(folder.path(), options);
    CHECK(model.device() == "cpu");
    CHECK(model.classify(tests::Picture(0, 255, 0).frame()).label() == "green");
    CHECK(refusal(folder.path(), "onnxruntime", "cuda:0") ==
          "onnxruntime runs on the device 'cpu' only, not on 'cuda:0'");
}

TEST_CASE("ONNX Runtime on CUDA says what is missing") {
    const tests::TemporaryFolder folder;
    tests::write_mean_colour_bundle(folder.path());
    const std::string reason = detail::unavailable(detail::backend_entry("onnxruntime-cuda"));
    if (reason.empty()) {
        MESSAGE("there is a GPU here, and ONNX Runtime's provider for it");
        return;
    }
    CHECK(begins_with(refusal(folder.path(), "onnxruntime-cuda"), reason + "; available here: "));
    if (detail::driver_gpu_count() == 0) {
        CHECK(reason == "onnxruntime-cuda needs an NVIDIA GPU and its driver, and none was found");
        return;
    }
    CHECK(begins_with(reason, "the onnxruntime installed here has no CUDAExecutionProvider: install its release"));
    // The library itself is asked all the same: what it says becomes one line that names the file.
    detail::Network network;
    network.file = folder.path() / "model.onnx";
    const auto open = [&](const char* device) {
        return error_of<BackendError>([&] {
            static_cast<void>(detail::open_onnxruntime_cuda(network, detail::SessionOptions{1, 1, device, {}}));
        });
    };
    CHECK(begins_with(open("cuda:0"), "onnxruntime-cuda cannot open " + network.file.string() + ": "));
    CHECK(open("").find('\n') == std::string::npos);
    CHECK(begins_with(open("cuda:77"), "there is no device 'cuda:77': expected one of cuda:0"));
}

#else

TEST_CASE("a build without ONNX Runtime says so") {
    const tests::TemporaryFolder folder;
    tests::write_mean_colour_bundle(folder.path());
    for (const std::string name : {"onnxruntime", "onnxruntime-cuda"}) {
        CHECK(begins_with(refusal(folder.path(), name), "this build of the runtime has no " + name +
                                                            ": build it where the library's headers are found; "
                                                            "available here: "));
    }
}

#endif
