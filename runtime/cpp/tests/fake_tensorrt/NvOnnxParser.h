/// \file
/// The part of the ONNX parser's interface that the backend uses, declared for the fake in fake_tensorrt.cpp.
#pragma once

#include <NvInferRuntime.h>

namespace nvonnxparser {

class IParserRefitter {
 public:
    virtual ~IParserRefitter() = default;
    virtual bool refitFromBytes(void const* model, std::size_t size, char const* path = nullptr) noexcept = 0;
};

IParserRefitter* createParserRefitter(nvinfer1::IRefitter& refitter, nvinfer1::ILogger& logger) noexcept;

}  // namespace nvonnxparser
