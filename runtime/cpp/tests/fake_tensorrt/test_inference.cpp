#include <thread>

#include "support.hpp"

using namespace holocron;
using namespace holocron::tests;

namespace {

/// Memory of the application's on the GPU.
class DeviceImages {
 public:
    explicit DeviceImages(const Tensor& images) : shape_(images.shape()) {
        REQUIRE(cudaMalloc(&memory_, images.byte_count()) == cudaSuccess);
        std::memcpy(memory_, images.data(), images.byte_count());
    }
    DeviceImages(const DeviceImages&) = delete;
    DeviceImages& operator=(const DeviceImages&) = delete;
    ~DeviceImages() { cudaFree(memory_); }
    [[nodiscard]] TensorView view() const { return {memory_, ElementType::Float32, shape_, Memory::Cuda}; }
    [[nodiscard]] void* memory() const { return memory_; }

 private:
    void* memory_ = nullptr;
    Shape shape_;
};

}  // namespace

TEST_CASE("answers are right, however late the device is and however it is run") {
    for (const bool lazy : {true, false}) {
        for (const bool graphs : {true, false}) {
            for (const bool shared : {true, false}) {
                for (const bool capturable : {true, false}) {
                    const Fakes fakes;
                    fake::cuda().lazy = lazy;
                    fake::cuda().integrated = shared;
                    fake::Plan plan;
                    plan.capturable = capturable;
                    EngineOptions options;
                    options.cuda_graphs = graphs;
                    options.zero_copy = shared;
                    detail::ContextPool pool(kLibraryName, open(network_of(plan), options_of(options)));
                    for (int i = 0; i < 24; ++i) {
                        const Tensor input = images(1 + i % 4, i);
                        CHECK(run(pool, input.view()) == expected(input));
                    }
                    const bool records = graphs && capturable && !kIsRtx;
                    CHECK((fake::cuda().calls["cudaGraphLaunch"] > 0) == records);
                    CHECK((fake::cuda().calls["cudaStreamBeginCapture"] > 0) == (graphs && !kIsRtx));
                    CHECK(shared == (fake::cuda().calls["cudaMemcpyAsync"] == 0));
                }
            }
        }
    }
}

TEST_CASE("everything is allocated once") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    const auto allocations = [] { return fake::cuda().calls["cudaMalloc"] + fake::cuda().calls["cudaHostAlloc"]; };
    const int before = allocations();
    CHECK(before == (kIsRtx ? 4 : 5));
    for (int i = 0; i < 40; ++i) {
        static_cast<void>(run(pool, images(1 + i % 4, i).view()));
    }
    CHECK(allocations() == before);
    CHECK(fake::cuda().calls["cudaStreamCreateWithFlags"] == 1);
}

TEST_CASE("the shapes that ran last keep their contexts") {
    const Fakes fakes;
    fake::Plan plan;
    plan.inputs[0].largest[0] = 12;
    detail::ContextPool pool(kLibraryName, open(network_of(plan)));
    for (int round = 0; round < 3; ++round) {
        for (int batch = 1; batch <= 12; ++batch) {
            const Tensor input = images(batch, batch + round);
            CHECK(run(pool, input.view()) == expected(input));
        }
    }
    CHECK(fake::library().alive["IExecutionContext"] == 8);
}

TEST_CASE("staged memory is pinned, and its place does not depend on the other inputs") {
    const Fakes fakes;
    fake::Plan plan;
    plan.inputs.push_back({"second", nvinfer1::DataType::kUINT8, {1, 2}, {4, 300}});
    const auto executable = open(network_of(plan));
    const auto context = executable->create_context();
    for (const std::int64_t size : {300, 2}) {
        const auto second = context->stage(1, {2, size});
        const auto first = context->stage(0, {2, 3, 2, 2});
        CHECK(second.type == ElementType::UInt8);
        const Tensor input = images(2, 5);
        std::memcpy(first.data, input.data(), input.byte_count());
        std::memset(second.data, 1, second.byte_count());
        auto wanted = expected(input);
        for (auto& value : wanted) {
            value += static_cast<float>(size);
        }
        CHECK(values_of(context->run().at(0)) == wanted);
    }
}

TEST_CASE("images on the GPU are taken by their pointer, after the default stream's work") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    const Tensor early = images(2, 1);
    const Tensor late = images(2, 9);
    const DeviceImages memory(early);
    fake::cuda().default_stream.push_back(
        {"a decoder", {}, {}, [&] { std::memcpy(memory.memory(), late.data(), late.byte_count()); }});
    for (int i = 0; i < 4; ++i) {
        CHECK(run(pool, memory.view()) == expected(late));
    }
    CHECK(run(pool, early.view()) == expected(early));
}

TEST_CASE("memory that is not on the GPU is refused, and the context stays") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    const Tensor input = images(1, 1);
    const TensorView lie{input.data(), ElementType::Float32, input.shape(), Memory::Cuda};
    CHECK(message_of<InputError>([&] { static_cast<void>(run(pool, lie)); }) ==
          "the input 'input' is not in a GPU's memory, the network on cuda:0: move it there");
    CHECK(fake::library().alive["IExecutionContext"] == 1);
    CHECK(run(pool, input.view()) == expected(input));
    fake::cuda().devices = 2;
    REQUIRE(cudaSetDevice(1) == cudaSuccess);
    const DeviceImages elsewhere(input);
    REQUIRE(cudaSetDevice(0) == cudaSuccess);
    CHECK(message_of<InputError>([&] { static_cast<void>(run(pool, elsewhere.view())); }) ==
          "the input 'input' is on cuda:1, the network on cuda:0: move it there");
}

TEST_CASE("a batch beyond the profile is refused, and the context stays") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    for (const Shape& wrong : {Shape{5, 3, 2, 2}, Shape{0, 3, 2, 2}, Shape{1, 3, 2}, Shape{1, 3, 2, 3}, Shape{}}) {
        const Tensor input(ElementType::Float32, wrong);
        const auto said = message_of<InputError>([&] { static_cast<void>(run(pool, input.view())); });
        CHECK(said.find("the input 'input' has the shape (") == 0);
        CHECK(said.find(": the engine takes (1, 3, 2, 2) to (4, 3, 2, 2); feed less at once, or build it with a larger "
                        "--max-batch") != std::string::npos);
    }
    const Tensor input = images(4, 3);
    CHECK(run(pool, input.view()) == expected(input));
    CHECK(fake::cuda().calls["cudaStreamCreateWithFlags"] == 1);
}

TEST_CASE("an output that grows as the input shrinks is refused") {
    const Fakes fakes;
    fake::Plan plan;
    plan.inputs.push_back({"rows", nvinfer1::DataType::kFLOAT, {1, 1}, {1, 200}});
    const auto executable = open(network_of(plan));
    const auto context = executable->create_context();
    static_cast<void>(context->stage(0, {4, 3, 2, 2}));
    static_cast<void>(context->stage(1, {1, 1}));
    CHECK(context->run().at(0).shape == Shape{4, 5});
}

TEST_CASE("threads share an engine through contexts of their own") {
    for (const bool graphs : {true, false}) {
        const Fakes fakes;
        EngineOptions options;
        options.contexts = 3;
        options.cuda_graphs = graphs;
        detail::ContextPool pool(kLibraryName, open(network_of({}), options_of(options)));
        std::vector<std::thread> threads;
        std::vector<int> wrong(6);
        for (int t = 0; t < 6; ++t) {
            threads.emplace_back([&, t] {
                for (int i = 0; i < 40; ++i) {
                    const Tensor input = images(1 + (t + i) % 4, t * 100 + i);
                    wrong[static_cast<std::size_t>(t)] += run(pool, input.view()) == expected(input) ? 0 : 1;
                }
            });
        }
        for (auto& thread : threads) {
            thread.join();
        }
        CHECK(wrong == std::vector<int>(6));
        CHECK(fake::cuda().calls["cudaStreamCreateWithFlags"] <= 3);
    }
}

TEST_CASE("a pool may be closed while others run") {
    const Fakes fakes;
    detail::ContextPool pool(kLibraryName, open(network_of({})));
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            try {
                for (int i = 0; i < 100; ++i) {
                    static_cast<void>(run(pool, images(1 + (t + i) % 4, i).view()));
                }
            } catch (const BackendError&) {
                return;  // it was closed
            }
        });
    }
    pool.close();
    for (auto& thread : threads) {
        thread.join();
    }
    CHECK(message_of<BackendError>([&] { static_cast<void>(run(pool, images(1, 1).view())); }) ==
          "the " + kLibraryName + " session is closed: load the model again");
}
