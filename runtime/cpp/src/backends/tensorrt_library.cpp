#include "backends/tensorrt_library.hpp"

#include <exception>

#include "text.hpp"

namespace holocron::detail {

std::string library_version() {
    return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
           std::to_string(getInferLibPatchVersion());
}

std::string library_problem() {
#ifndef HOLOCRON_HAS_TENSORRT_RTX
    const auto major = getInferLibMajorVersion();
    const auto minor = getInferLibMinorVersion();
    if (major < 10 || (major == 10 && minor < 3)) {
        return "TensorRT " + library_version() + " is too old: 10.3 or later is needed (JetPack 6 and 7 have it)";
    }
#endif
    return {};
}

void TensorRtLogger::log(Severity severity, nvinfer1::AsciiChar const* message) noexcept {
    if (message == nullptr || (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR)) {
        return;
    }
    try {
        const std::string text = one_line(message);
        const std::lock_guard<std::mutex> lock(mutex_);
        first_.emplace(std::this_thread::get_id(), text);
        if (anywhere_.empty()) {
            anywhere_ = text;
        }
    } catch (const std::exception&) {
        return;  // no memory for the reason: the failure itself is reported all the same
    }
}

void TensorRtLogger::clear() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    first_.erase(std::this_thread::get_id());
    anywhere_.clear();
}

std::string TensorRtLogger::reason() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto own = first_.find(std::this_thread::get_id());
    if (own != first_.end()) {
        return own->second;
    }
    return anywhere_.empty() ? "it gave no reason" : anywhere_;
}

TensorRtLogger& logger() {
    static TensorRtLogger instance;
    return instance;
}

BackendError library_error(const std::string& what) {
    return BackendError(std::string(kTitle) + " " + library_version() + " " + what + ": " + logger().reason());
}

}  // namespace holocron::detail
