#include "fake_models.hpp"
#include "support.hpp"

using namespace holocron;
using namespace holocron::tests;

namespace {

constexpr int kSide = 8;

/// A classifier of frames in blue, green, red.
nlohmann::json frame_manifest() {
    auto manifest = mean_colour_manifest(kSide);
    manifest["frame"] = {{"channels", "bgr"}, {"size", {kSide, kSide}}, {"fixed", true}};
    manifest["inputs"] = {{{"name", "frame"}, {"dtype", "uint8"}, {"shape", {"batch", kSide, kSide, 3}}}};
    return manifest;
}

fake::Plan frame_plan() {
    fake::Plan plan;
    plan.inputs = {{"frame", nvinfer1::DataType::kUINT8, {1, kSide, kSide, 3}, {4, kSide, kSide, 3}}};
    plan.outputs = {{"logits", nvinfer1::DataType::kFLOAT, {0, 3}, {}}};
    return plan;
}

Model open_model() {
    return Model(std::make_shared<const Model::Impl>(detail::parse_manifest(frame_manifest().dump()),
                                                     open(network_of(frame_plan())),
                                                     Model::Impl::Opened{kLibraryName, "fp16", "f.engine", 4, 1}));
}

/// A frame of the application's on the GPU.
class DeviceFrame {
 public:
    explicit DeviceFrame(const Picture& picture) : frame_(picture.frame()) {
        REQUIRE(cudaMalloc(&memory_, picture.pixels.size()) == cudaSuccess);
        std::memcpy(memory_, picture.pixels.data(), picture.pixels.size());
        frame_.pixels = static_cast<const std::uint8_t*>(memory_);
        frame_.format = Format::BGR;
        frame_.memory = Memory::Cuda;
    }
    DeviceFrame(const DeviceFrame&) = delete;
    DeviceFrame& operator=(const DeviceFrame&) = delete;
    ~DeviceFrame() { cudaFree(memory_); }
    [[nodiscard]] const Frame& frame() const { return frame_; }

 private:
    void* memory_ = nullptr;
    Frame frame_;
};

}  // namespace

TEST_CASE("a frame on the GPU is classified where it is") {
    const Fakes fakes;
    const Model model = open_model();
    const Picture picture(10, 20, 200, kSide, kSide);
    const DeviceFrame there(picture);
    Frame here = picture.frame();
    here.format = Format::BGR;
    for (int i = 0; i < 3; ++i) {
        const auto answer = model.classify(there.frame());
        CHECK(answer.logits == model.classify(here).logits);
        CHECK(answer.label() == "blue");
    }
}

TEST_CASE("a frame on the GPU that would have to be read by the processor is refused") {
    const Fakes fakes;
    const Model model = open_model();
    const DeviceFrame there(Picture(1, 2, 3, kSide, kSide));
    const std::string refusal =
        " lies in the GPU's memory, which mean_colour takes one frame at a time, all of it, in its order of channels, "
        "without gaps between rows, and if it was exported with --input frame: copy it to the host first";
    Frame other = there.frame();
    other.format = Format::RGB;
    CHECK(error_of<ImageError>([&] { static_cast<void>(model.classify(other)); }) == "image 0" + refusal);
    other = there.frame();
    other.region = Region{0, 0, kSide, kSide};
    CHECK(error_of<ImageError>([&] { static_cast<void>(model.classify(other)); }) == "image 0" + refusal);
    const Picture picture(1, 2, 3, kSide, kSide);
    CHECK(error_of<ImageError>([&] {
              static_cast<void>(model.classify({picture.frame(), there.frame()}));
          }) == "image 1" + refusal);
    other = there.frame();
    other.pixels = picture.pixels.data();
    CHECK(error_of<InputError>([&] { static_cast<void>(model.classify(other)); }) ==
          "the input 'frame' is not in a GPU's memory, the network on cuda:0: move it there");
    CHECK(model.classify(there.frame()).size() == 3);
}

TEST_CASE("a network on the processor takes no frame on the GPU") {
    const Fakes fakes;
    const Model model = make_model(fake_network());
    const DeviceFrame there(Picture(1, 2, 3, kSide, kSide));
    CHECK(error_of<ImageError>([&] { static_cast<void>(model.classify(there.frame())); }) ==
          "image 0 lies in the GPU's memory, which the network on fake does not take: copy it to the host first");
}

TEST_CASE("frames beyond an engine's batch are fed in parts") {
    const Fakes fakes;
    const Model model = open_model();
    std::vector<Picture> pictures;
    std::vector<Frame> frames;
    for (int i = 0; i < 11; ++i) {
        pictures.emplace_back(static_cast<std::uint8_t>(20 * i), 7, 9, kSide, kSide);
    }
    for (const auto& picture : pictures) {
        frames.push_back(picture.frame());
    }
    const auto answers = model.classify(frames);
    REQUIRE(answers.size() == 11);
    for (std::size_t i = 0; i < answers.size(); ++i) {
        CHECK(answers[i].logits == model.classify(frames[i]).logits);
    }
}
