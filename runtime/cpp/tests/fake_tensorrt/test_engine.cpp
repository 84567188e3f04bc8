#include "bundle_files.hpp"
#include "support.hpp"

using namespace holocron;
using namespace holocron::tests;

namespace {

std::string refusal(const fake::Plan& plan) {
    return message_of<BackendError>([&] { static_cast<void>(open(network_of(plan))); });
}

}  // namespace

TEST_CASE("an engine says what it takes and gives") {
    const Fakes fakes;
    fake::Plan plan;
    plan.inputs.push_back({"frame", nvinfer1::DataType::kUINT8, {1, 1, 1, 3}, {1, 8, 9, 3}});
    plan.outputs.push_back({"boxes", nvinfer1::DataType::kHALF, {1, 7, 4}, {}});
    const auto executable = open(network_of(plan));
    const auto& inputs = executable->inputs();
    REQUIRE(inputs.size() == 2);
    CHECK(inputs[0].name == "input");
    CHECK(inputs[0].shape == std::vector<Dimension>{"batch", 3, 2, 2});
    CHECK(inputs[1].type == ElementType::UInt8);
    CHECK(inputs[1].shape == std::vector<Dimension>{1, "dim1", "dim2", 3});
    REQUIRE(executable->outputs().size() == 2);
    CHECK(executable->outputs()[0].shape == std::vector<Dimension>{"batch", 5});
    CHECK(executable->outputs()[1].type == ElementType::Float16);
    CHECK(executable->device() == "cuda:0");
    CHECK(executable->takes(Memory::Cuda));
    CHECK(executable->takes(Memory::Host));
    CHECK(executable->context_limit() == 4);
}

TEST_CASE("an engine that is not one is refused with the library's first reason") {
    const Fakes fakes;
    detail::Network network;
    for (const std::string& plan : {std::string(), std::string("not a plan"), fake::Plan().serialize().substr(0, 40)}) {
        network.plan = plan;
        CHECK(message_of<BackendError>([&] { static_cast<void>(open(network)); }) ==
              kVersion + " does not open the engine: the plan is not one");
    }
    fake::refuse("createInferRuntime");
    CHECK(refusal({}) == kVersion + " does not start: createInferRuntime was told to refuse");
}

TEST_CASE("engines of kinds that are not run are refused") {
    const Fakes fakes;
    fake::Plan plan;
    plan.inputs[0].location = nvinfer1::TensorLocation::kHOST;
    CHECK(refusal(plan) == "the engine's 'input' is a shape, not data: this backend does not run such engines");
    plan = {};
    plan.outputs[0].format = nvinfer1::TensorFormat::kCHW32;
    CHECK(refusal(plan) == "the engine's 'logits' is not laid out as rows and columns: build it again");
    plan = {};
    plan.inputs[0].type = nvinfer1::DataType::kFP8;
    CHECK(refusal(plan).find("the engine's 'input' has the type 6") == 0);
    plan = {};
    plan.inputs.clear();
    CHECK(refusal(plan) == "the engine has no input: build it again");
    plan = {};
    plan.data_dependent = true;
    const auto executable = open(network_of(plan));
    CHECK(message_of<BackendError>([&] { static_cast<void>(executable->create_context()); }) ==
          "the shapes of the engine's outputs depend on the data: this backend does not run it");
}

TEST_CASE("a stripped engine takes its weights from the ONNX file") {
    const Fakes fakes;
    fake::Plan plan;
    plan.stripped = true;
    auto network = network_of(plan);
    network.engine = detail::EngineInfo();
    network.engine->stripped = true;
    CHECK(message_of<BackendError>([&] { static_cast<void>(open(network)); }) ==
          "the engine is without its weights, which are in its bundle's ONNX file: open the bundle");
    network.weights = "other weights";
    CHECK(message_of<BackendError>([&] { static_cast<void>(open(network)); }) ==
          kVersion +
              " does not take the weights of the ONNX file, which is not the one it was built from: these are other "
              "weights");
    network.weights = fake::kWeights;
    detail::ContextPool pool(kLibraryName, open(network));
    const Tensor input = images(1, 2);
    CHECK(run(pool, input.view()) == expected(input));
}

TEST_CASE("what the manifest says of an engine is told to the library") {
    const Fakes fakes;
    fake::Plan plan;
    plan.needs_host_code = true;
    auto network = network_of(plan);
    network.engine = detail::EngineInfo();
    CHECK(message_of<BackendError>([&] { static_cast<void>(open(network)); }).find("does not open the engine") !=
          std::string::npos);
    network.engine->version_compatible = true;
    network.engine->dla_core = 1;
    static_cast<void>(open(network));
    CHECK(fake::library().dla_core == 1);
}

TEST_CASE("zero copy is for a GPU that shares the processor's memory") {
    const Fakes fakes;
    EngineOptions options;
    options.zero_copy = true;
    CHECK(message_of<BackendError>([&] { static_cast<void>(open(network_of({}), options_of(options))); }) ==
          "zero_copy is for a GPU that shares the processor's memory, as on a Jetson, which cuda:0 does not: leave it "
          "out");
}

TEST_CASE("what was compiled for the GPU is kept beside the engine" * doctest::skip(!kIsRtx)) {
    const Fakes fakes;
    const TemporaryFolder folder;
    auto network = network_of({});
    network.cache = folder.path() / "model.engine.cache";
    static_cast<void>(open(network));
    CHECK(fake::library().known_cache.empty());
    CHECK(std::filesystem::exists(network.cache));
    fake::library().cache = "kernels of a later driver";
    static_cast<void>(open(network));
    CHECK(fake::library().known_cache == "kernels");
    static_cast<void>(open(network));
    CHECK(fake::library().known_cache == "kernels of a later driver");
}
