// Flat functions that Python calls through ctypes.
#pragma once

#include <exception>
#include <string>

#if defined(_WIN32)
#define SHIM extern "C" __declspec(dllexport)
#else
#define SHIM extern "C" __attribute__((visibility("default")))
#endif

/// Null, or what went wrong: a text that lives until the thread's next call.
template <typename Work>
const char* guarded(const Work& work) {
    thread_local std::string message;
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}
