/// \file
/// TensorRT or TensorRT-RTX as a library: its name and version, and what it says when something fails.
///
/// The two have one interface and define the same symbols, so that a build has one of them.
#pragma once

#include <NvInferRuntime.h>

#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "holocron/errors.hpp"

namespace holocron::detail {

#ifdef HOLOCRON_HAS_TENSORRT_RTX
constexpr const char* kLibrary = "tensorrt_rtx";
constexpr const char* kTitle = "TensorRT-RTX";
#else
constexpr const char* kLibrary = "tensorrt";
constexpr const char* kTitle = "TensorRT";
#if NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 3)
#error "TensorRT 10.3 or later is needed (JetPack 6 and 7 have it)"
#endif
#endif

/// Version of the library that is loaded, e.g. `"10.3.0"`.
[[nodiscard]] std::string library_version();

/// Why the library that is loaded cannot be used; empty if it can.
[[nodiscard]] std::string library_problem();

/// Prints nothing and keeps what went wrong.
///
/// Of what TensorRT logs on one failure the first says why, the last only where it was caught. It logs in the thread
/// that called it, and rarely in one of its own.
class TensorRtLogger final : public nvinfer1::ILogger {
 public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override;

    /// Forget what the calling thread's calls said before.
    void clear() noexcept;
    /// The first error since then.
    [[nodiscard]] std::string reason() const;

 private:
    mutable std::mutex mutex_;
    std::map<std::thread::id, std::string> first_;
    std::string anywhere_;
};

/// The logger of every engine: TensorRT keeps the first that it is given for what belongs to no engine.
[[nodiscard]] TensorRtLogger& logger();

/// The error of a call that failed, with the library's reason.
[[nodiscard]] BackendError library_error(const std::string& what);

}  // namespace holocron::detail
