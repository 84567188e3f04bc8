#include "backends/cuda.hpp"
#include "support.hpp"

using namespace holocron;
using namespace holocron::tests;

TEST_CASE("where there is no GPU the backend says so") {
    const Fakes fakes;
    fake::cuda().devices = 0;
    CHECK(problem() == kLibraryName + " needs an NVIDIA GPU and its driver, and none was found");
    CHECK(message_of<BackendError>([] { static_cast<void>(host("")); }) == "there is no NVIDIA GPU here");
    fake::cuda().driver_version = 11040;
    CHECK(problem() ==
          kLibraryName + " needs an NVIDIA driver for CUDA 12, and the one here is for CUDA 11: update it");
    CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("where there is one it can be used") {
    const Fakes fakes;
    CHECK(problem().empty());
    CHECK(host("").version == kVersion.substr(kVersion.find(' ') + 1));
    CHECK(host("cuda:0").compute_capability == "8.7");
}

TEST_CASE("TensorRT of before JetPack 6 is refused") {
    const Fakes fakes;
    fake::library().minor = 1;
    CHECK(problem() == (kIsRtx ? "" : "TensorRT 10.1.0 is too old: 10.3 or later is needed (JetPack 6 and 7 have it)"));
}

TEST_CASE("a device is named by its number") {
    const Fakes fakes;
    fake::cuda().devices = 3;
    CHECK(detail::cuda_device_index("") == 0);
    CHECK(detail::cuda_device_index("cuda") == 0);
    CHECK(detail::cuda_device_index("2") == 2);
    CHECK(detail::cuda_device_index("CUDA:1") == 1);
    for (const char* wrong : {"3", "-1", "cuda:", "cuda:x", "cpu", "99999999999999999999", "1 ", "0x1"}) {
        CHECK(message_of<BackendError>([&] { static_cast<void>(detail::cuda_device_index(wrong)); }) ==
              "there is no device '" + std::string(wrong) + "': expected one of cuda:0, cuda:1, cuda:2");
    }
}

TEST_CASE("the calling thread's device is its own again") {
    const Fakes fakes;
    fake::cuda().devices = 2;
    const auto network = network_of({});
    detail::SessionOptions options;
    options.device = "cuda:1";
    const auto executable = open(network, options);
    CHECK(executable->device() == "cuda:1");
    {
        detail::ContextPool pool(kLibraryName, executable);
        const Tensor input = images(2, 1);
        CHECK(run(pool, input.view()) == expected(input));
        int device = -1;
        CHECK(cudaGetDevice(&device) == cudaSuccess);
        CHECK(device == 0);
    }
}
