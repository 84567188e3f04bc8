/// \file
/// The part of TensorRT's and TensorRT-RTX's interface that the backend uses, declared for the fake in
/// fake_tensorrt.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#ifdef HOLOCRON_HAS_TENSORRT_RTX
#define NV_TENSORRT_MAJOR 1
#define NV_TENSORRT_MINOR 6
#else
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3
#endif

namespace nvinfer1 {

using AsciiChar = char;

class ILogger {
 public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, AsciiChar const* message) noexcept = 0;
    virtual ~ILogger() = default;
};

struct Dims {
    std::int32_t nbDims;
    std::int64_t d[8];
};

enum class DataType : std::int32_t {
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
    kINT64 = 8
};
enum class TensorLocation : std::int32_t { kDEVICE = 0, kHOST = 1 };
enum class TensorFormat : std::int32_t { kLINEAR = 0, kCHW32 = 5 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0, kUSER_MANAGED = 2 };
enum class ProfilingVerbosity : std::int32_t { kLAYER_NAMES_ONLY = 0, kNONE = 1 };

class IExecutionContext {
 public:
    virtual ~IExecutionContext() = default;
    virtual bool setInputShape(char const* name, Dims const& dims) noexcept = 0;
    virtual std::int32_t inferShapes(std::int32_t most, char const** names) noexcept = 0;
    [[nodiscard]] virtual Dims getTensorShape(char const* name) const noexcept = 0;
    virtual bool setTensorAddress(char const* name, void* address) noexcept = 0;
    virtual void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept = 0;
    virtual bool setNvtxVerbosity(ProfilingVerbosity verbosity) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

#ifdef HOLOCRON_HAS_TENSORRT_RTX
enum class CudaGraphStrategy : std::int32_t { kDISABLED = 0, kWHOLE_GRAPH_CAPTURE = 1 };

class IHostMemory {
 public:
    virtual ~IHostMemory() = default;
    [[nodiscard]] virtual void* data() const noexcept = 0;
    [[nodiscard]] virtual std::size_t size() const noexcept = 0;
};

class IRuntimeCache {
 public:
    virtual ~IRuntimeCache() = default;
    [[nodiscard]] virtual IHostMemory* serialize() const noexcept = 0;
    virtual bool deserialize(void const* blob, std::size_t size) noexcept = 0;
};

class IRuntimeConfig {
 public:
    virtual ~IRuntimeConfig() = default;
    [[nodiscard]] virtual IRuntimeCache* createRuntimeCache() const noexcept = 0;
    virtual bool setRuntimeCache(IRuntimeCache const& cache) noexcept = 0;
    virtual bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept = 0;
};
#endif

class ICudaEngine {
 public:
    virtual ~ICudaEngine() = default;
#ifdef HOLOCRON_HAS_TENSORRT_RTX
    virtual IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept = 0;
    virtual IRuntimeConfig* createRuntimeConfig() noexcept = 0;
#else
    virtual IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept = 0;
#endif
    [[nodiscard]] virtual std::int32_t getNbIOTensors() const noexcept = 0;
    [[nodiscard]] virtual char const* getIOTensorName(std::int32_t index) const noexcept = 0;
    [[nodiscard]] virtual TensorLocation getTensorLocation(char const* name) const noexcept = 0;
    [[nodiscard]] virtual TensorFormat getTensorFormat(char const* name) const noexcept = 0;
    [[nodiscard]] virtual DataType getTensorDataType(char const* name) const noexcept = 0;
    [[nodiscard]] virtual Dims getTensorShape(char const* name) const noexcept = 0;
    [[nodiscard]] virtual TensorIOMode getTensorIOMode(char const* name) const noexcept = 0;
    [[nodiscard]] virtual Dims getProfileShape(char const* name, std::int32_t profile,
                                               OptProfileSelector select) const noexcept = 0;
    [[nodiscard]] virtual std::int64_t getDeviceMemorySizeV2() const noexcept = 0;
};

class IRefitter {
 public:
    virtual ~IRefitter() = default;
    virtual std::int32_t getMissingWeights(std::int32_t size, char const** names) noexcept = 0;
    virtual bool refitCudaEngine() noexcept = 0;
};

class IRuntime {
 public:
    virtual ~IRuntime() = default;
    virtual void setDLACore(std::int32_t core) noexcept = 0;
    virtual void setEngineHostCodeAllowed(bool allowed) noexcept = 0;
    virtual ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept = 0;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;
IRefitter* createInferRefitter(ICudaEngine& engine, ILogger& logger) noexcept;

}  // namespace nvinfer1

extern "C" std::int32_t getInferLibMajorVersion() noexcept;
extern "C" std::int32_t getInferLibMinorVersion() noexcept;
extern "C" std::int32_t getInferLibPatchVersion() noexcept;
