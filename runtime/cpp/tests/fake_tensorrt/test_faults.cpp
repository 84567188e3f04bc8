#include <optional>
#include <random>

#include "support.hpp"

using namespace holocron;
using namespace holocron::tests;

namespace {

const std::vector<std::string> kCalls{"cudaMalloc",
                                      "cudaHostAlloc",
                                      "cudaStreamCreateWithFlags",
                                      "cudaStreamSynchronize",
                                      "cudaMemcpyAsync",
                                      "cudaStreamBeginCapture",
                                      "cudaStreamEndCapture",
                                      "cudaGraphInstantiateWithFlags",
                                      "cudaGraphLaunch",
                                      "cudaGraphDestroy",
                                      "cudaGraphExecDestroy",
                                      "cudaGetDevice",
                                      "cudaFree",
                                      "cudaFreeHost",
                                      "cudaStreamDestroy",
                                      "cudaEventCreateWithFlags",
                                      "cudaEventRecord",
                                      "cudaStreamWaitEvent",
                                      "cudaEventDestroy",
                                      "cudaPointerGetAttributes",
                                      "cudaDeviceGetAttribute"};
const std::vector<std::string> kRefusals{"createExecutionContext", "setInputShape", "inferShapes", "setTensorAddress",
                                         "enqueueV3"};

}  // namespace

TEST_CASE("memory for the only context says what is missing") {
    const Fakes fakes;
    fake::cuda().capacity = 400;
    const auto executable = open(network_of({}));
    CHECK(
        message_of<detail::OutOfDeviceMemory>([&] { static_cast<void>(executable->create_context()); }) ==
        std::string("there is not enough memory for the engine: it needs 0 MiB for activations besides its buffers, ") +
            "and 0 MiB are free on cuda:0; end other programs on the GPU, or build the engine with a smaller "
            "--max-batch");
}

TEST_CASE("where there is no memory for one more context the others are waited for") {
    const Fakes fakes;
    const auto executable = open(network_of({}));
    detail::ContextPool pool(kLibraryName, executable);
    fake::cuda().capacity = fake::cuda().used();
    const Tensor input = images(3, 1);
    pool.with_context([&](detail::Context& context) {
        context.bind(0, input.view());
        CHECK(values_of(context.run().at(0)) == expected(input));
        CHECK_THROWS_AS(static_cast<void>(executable->create_context()), detail::OutOfDeviceMemory);
    });
    CHECK(run(pool, input.view()) == expected(input));
}

TEST_CASE("a lost device closes the pool, and every later call says why") {
    for (const bool later : {false, true}) {
        const Fakes fakes;
        detail::ContextPool pool(kLibraryName, open(network_of({})));
        const Tensor input = images(2, 1);
        if (later) {
            CHECK(run(pool, input.view()) == expected(input));
            CHECK(run(pool, input.view()) == expected(input));
        }
        fake::cuda().fail("cudaStreamSynchronize", cudaErrorIllegalAddress);
        CHECK(message_of<BackendError>([&] { static_cast<void>(run(pool, input.view())); }) ==
              kLibraryName +
                  " failed to run the network: cudaStreamSynchronize: something failed (cudaErrorIllegalAddress); the "
                  "device is lost to this process: restart the program");
        CHECK(message_of<BackendError>([&] { static_cast<void>(run(pool, input.view())); }) ==
              "the " + kLibraryName +
                  " session is closed, since its device was lost (cudaStreamSynchronize: something failed "
                  "(cudaErrorIllegalAddress)): restart the program");
    }
}

TEST_CASE("a device that is lost while the library runs is noticed by waiting") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    const Tensor input = images(2, 1);
    fake::refuse("enqueueV3");
    fake::cuda().fail("cudaStreamSynchronize", cudaErrorLaunchFailure);
    CHECK(message_of<detail::DeviceLost>([&] {
              static_cast<void>(run(pool, input.view()));
          }).find("cudaErrorLaunchFailure") != std::string::npos);
    CHECK_THROWS_AS(pool.check_open(), BackendError);
}

TEST_CASE("a run that fails costs its context, and the next one has another") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    const Tensor input = images(2, 1);
    fake::refuse("enqueueV3");
    CHECK(message_of<BackendError>([&] { static_cast<void>(run(pool, input.view())); }) ==
          kVersion + " failed to run the network: enqueueV3 was told to refuse");
    CHECK(run(pool, input.view()) == expected(input));
    fake::cuda().fail("cudaMemcpyAsync", cudaErrorMemoryAllocation);
    CHECK(message_of<BackendError>([&] { static_cast<void>(run(pool, input.view())); }) ==
          kLibraryName +
              " failed to run the network: cudaMemcpyAsync: out of memory (cudaErrorMemoryAllocation); end other "
              "programs on the GPU, or feed less at once");
    CHECK(run(pool, input.view()) == expected(input));
    CHECK(fake::cuda().calls["cudaStreamCreateWithFlags"] == 3);
}

TEST_CASE("what cannot be recorded runs without" * doctest::skip(kIsRtx)) {
    for (const std::string call : {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"}) {
        const Fakes fakes;
        detail::ContextPool pool(kLibraryName, open(network_of({})));
        fake::cuda().fail(call, cudaErrorNotSupported);
        for (int i = 0; i < 4; ++i) {
            const Tensor input = images(2, i);
            CHECK(run(pool, input.view()) == expected(input));
        }
        CHECK(fake::cuda().calls["cudaStreamBeginCapture"] == 1);
        CHECK(fake::cuda().calls["cudaGraphLaunch"] == 0);
    }
}

TEST_CASE("whatever is done in whatever order, and whatever fails meanwhile: right answers or errors, no leak") {
    constexpr int kSequences = 1500;
    for (int seed = 0; seed < kSequences; ++seed) {
        CAPTURE(seed);
        std::mt19937 random(static_cast<unsigned>(seed));
        const auto below = [&random](std::size_t n) { return static_cast<std::size_t>(random() % n); };
        const Fakes fakes;
        fake::cuda().lazy = below(2) == 0;
        fake::cuda().integrated = below(2) == 0;
        fake::Plan plan;
        plan.capturable = below(4) > 0;
        EngineOptions options;
        options.contexts = 2;
        options.cuda_graphs = below(4) > 0;
        options.zero_copy = fake::cuda().integrated;
        std::optional<detail::ContextPool> pool;
        void* memory = nullptr;
        REQUIRE(cudaMalloc(&memory, images(4, 0).byte_count()) == cudaSuccess);
        for (int step = 0; step < 16; ++step) {
            const auto choice = below(8);
            try {
                if (!pool) {
                    pool.emplace(kLibraryName, open(network_of(plan), options_of(options)));
                }
                if (choice == 0) {
                    fake::cuda().fail(kCalls[below(kCalls.size())],
                                      below(3) == 0 ? cudaErrorLaunchFailure : cudaErrorNotSupported,
                                      static_cast<int>(below(4)));
                } else if (choice == 1) {
                    fake::refuse(kRefusals[below(kRefusals.size())], static_cast<int>(below(3)));
                } else {
                    const Tensor input = images(1 + static_cast<std::int64_t>(below(4)), step);
                    std::memcpy(memory, input.data(), input.byte_count());
                    const bool on_device = below(2) == 0;
                    const TensorView view = on_device
                                                ? TensorView(memory, ElementType::Float32, input.shape(), Memory::Cuda)
                                                : input.view();
                    const auto answer = run(*pool, view);  // outside of CHECK, which would catch what it throws
                    CHECK(answer == expected(input));
                }
            } catch (const BackendError&) {
                continue;  // one of the faults
            }
        }
        pool.reset();
        static_cast<void>(cudaFree(memory));
    }
}
