#include "backends/cuda_driver.hpp"

#if defined(__unix__)
#include <dlfcn.h>
#endif

namespace holocron::detail {

namespace {

int count_gpus() noexcept {
#if defined(__unix__)
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW);  // stays open: it has threads of its own once it was used
    if (driver == nullptr) {
        return 0;
    }
    const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
    const auto get_count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
    int count = 0;
    const bool worked = init != nullptr && get_count != nullptr && init(0) == 0 && get_count(&count) == 0;
    return worked ? count : 0;
#else
    return 0;
#endif
}

}  // namespace

int driver_gpu_count() noexcept {
    static const int count = count_gpus();
    return count;
}

}  // namespace holocron::detail
