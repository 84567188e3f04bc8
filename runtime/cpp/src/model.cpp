#include "holocron/model.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <utility>

#include "model_impl.hpp"

namespace holocron {

namespace {

using detail::FrameSizes;
using detail::Outputs;

template <typename Answer>
using Answers = std::vector<Answer> (*)(const detail::Manifest&, const Outputs&, const FrameSizes&);

template <typename Answer>
std::vector<Answer> answers(const Model::Impl& impl, const std::vector<Frame>& frames, Answers<Answer> make) {
    std::vector<Answer> results;
    impl.run(frames, false, [&](const Outputs& outputs, const FrameSizes& sizes) {
        auto some = make(impl.manifest(), outputs, sizes);
        std::move(some.begin(), some.end(), std::back_inserter(results));
    });
    return results;
}

/// Add the entries of an output behind those that are there.
void append(Tensors& tensors, const std::string& name, const TensorView& view) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
        tensors.emplace(name, Tensor(view));
        return;
    }
    const Tensor& before = found->second;
    Shape shape = before.shape();
    shape[0] += view.shape[0];
    Tensor both(before.type(), shape);
    if (both.byte_count() != before.byte_count() + view.byte_count()) {
        throw BundleError("the network answered with " + detail::repr(name) +
                          " of one shape for some images and another for others; export the model again");
    }
    auto* bytes = static_cast<std::byte*>(both.data());
    std::memcpy(bytes, before.data(), before.byte_count());
    std::memcpy(bytes + before.byte_count(), view.data, view.byte_count());
    found->second = std::move(both);
}

}  // namespace

std::string_view to_string(Task task) noexcept {
    switch (task) {
        case Task::Classification:
            return "classification";
        case Task::Detection:
            return "detection";
        case Task::Segmentation:
            break;
    }
    return "segmentation";
}

const char* version() noexcept { return HOLOCRON_VERSION; }

Model::Model(std::shared_ptr<const Impl> impl) noexcept : impl_(std::move(impl)) {}

const std::string& Model::name() const noexcept { return impl_->manifest().name; }
Task Model::task() const noexcept { return impl_->manifest().task; }
const std::vector<std::string>& Model::labels() const noexcept { return *impl_->manifest().labels; }
const std::string& Model::artefact() const noexcept { return impl_->opened().artefact; }
const std::string& Model::precision() const noexcept { return impl_->opened().precision; }
const std::string& Model::backend() const noexcept { return impl_->opened().backend; }
const std::string& Model::device() const noexcept { return impl_->device(); }
int Model::threads() const noexcept { return impl_->opened().threads; }
const std::vector<TensorSpec>& Model::inputs() const noexcept { return impl_->inputs(); }
const std::vector<TensorSpec>& Model::outputs() const noexcept { return impl_->outputs(); }
Size Model::input_size() const noexcept { return impl_->manifest().preprocessing.size; }

Classification Model::classify(const Frame& frame) const { return std::move(classify(std::vector{frame}).front()); }

std::vector<Classification> Model::classify(const std::vector<Frame>& frames) const {
    impl_->require(Task::Classification, "classify");
    return answers<Classification>(*impl_, frames, detail::classifications);
}

Detections Model::detect(const Frame& frame) const { return std::move(detect(std::vector{frame}).front()); }

std::vector<Detections> Model::detect(const std::vector<Frame>& frames) const {
    impl_->require(Task::Detection, "detect");
    return answers<Detections>(*impl_, frames, detail::detections);
}

Segmentation Model::segment(const Frame& frame) const { return std::move(segment(std::vector{frame}).front()); }

std::vector<Segmentation> Model::segment(const std::vector<Frame>& frames) const {
    impl_->require(Task::Segmentation, "segment");
    return answers<Segmentation>(*impl_, frames, detail::segmentations);
}

Tensors Model::run(const Frame& frame) const { return run(std::vector{frame}); }

Tensors Model::run(const std::vector<Frame>& frames) const {
    Tensors results;
    impl_->run(frames, true, [&](const Outputs& outputs, const FrameSizes& /*sizes*/) {
        const auto& specs = impl_->manifest().outputs;
        for (std::size_t i = 0; i < specs.size(); ++i) {
            append(results, specs[i].name, outputs.views()[i]);
        }
    });
    return results;
}

Tensors Model::run(const TensorViews& inputs) const { return impl_->run(inputs); }

Tensors Model::feeds(const std::vector<Frame>& frames) const { return impl_->feeds(frames); }

void Model::warm_up(Size frame_size) const {
    constexpr int runs = 2;  // a context records the second run of a shape
    const auto& manifest = impl_->manifest();
    const Size largest = manifest.frame ? manifest.frame->size : manifest.preprocessing.size;
    const Size size = manifest.frame && frame_size != Size{} ? frame_size : largest;
    const auto extent = [](int pixels, int most) {  // what is out of range is refused before it is looked at
        return static_cast<std::size_t>(std::clamp(pixels, 0, most));
    };
    const std::vector<std::uint8_t> black(3 * extent(size.height, largest.height) * extent(size.width, largest.width) +
                                          1);
    const Format format = manifest.frame && manifest.frame->bgr ? Format::BGR : Format::RGB;
    const std::vector<Frame> frames{{black.data(), size.width, size.height, 0, format}};
    for (int i = 0; i < runs; ++i) {
        impl_->run(frames, true, [](const Outputs& /*outputs*/, const FrameSizes& /*sizes*/) {});
    }
}

void Model::close() const { impl_->close(); }

}  // namespace holocron
