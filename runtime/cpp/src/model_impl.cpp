#include "model_impl.hpp"

#include <algorithm>

#include "convert.hpp"
#include "network_check.hpp"

namespace holocron {

namespace {

using detail::Context;
using detail::FrameRange;
using detail::FrameSizes;
using detail::Manifest;
using detail::Outputs;

constexpr std::int64_t kChunk = 32;  // frames fed at once from a long list: more gain nothing and cost memory
constexpr std::int64_t kChunkValues = 1 << 24;  // outputs of a chunk: feature maps of 32 frames would be gigabytes

/// How many frames to feed at once, so that their outputs stay small; what is not known counts as one.
std::size_t chunk_of(const Manifest& manifest) {
    std::int64_t values = 0;
    const auto saturated = [](std::int64_t value) { return std::min<std::int64_t>(value, kChunkValues); };
    for (const auto& spec : manifest.outputs) {
        std::int64_t product = 1;
        for (std::size_t d = 1; d < spec.shape.size(); ++d) {
            const auto* extent = std::get_if<std::int64_t>(&spec.shape[d]);
            product = extent == nullptr ? product : saturated(product * *extent);
        }
        values = saturated(values + product);
    }
    if (manifest.frame) {
        const Size size = manifest.frame->size;
        values = saturated(values + saturated(std::int64_t{3} * size.height * size.width));
    }
    return static_cast<std::size_t>(std::clamp<std::int64_t>(kChunkValues / values, 1, kChunk));
}

/// What is wrong with the manifest by itself is told before what does not fit the network.
Manifest with_checked_task(Manifest manifest) {
    detail::check_task(manifest);
    return manifest;
}

std::vector<std::size_t> places(const std::vector<TensorSpec>& said, const std::vector<TensorSpec>& found) {
    std::vector<std::size_t> result;
    for (const auto& spec : said) {
        const auto place =
            std::find_if(found.begin(), found.end(), [&](const auto& each) { return each.name == spec.name; });
        result.push_back(static_cast<std::size_t>(place - found.begin()));
    }
    return result;
}

/// Puts inputs into a context.
class ContextSink final : public detail::InputSink {
 public:
    ContextSink(Context& context, const std::vector<std::size_t>& input_places)
        : context_(context), places_(input_places) {}

    MutableTensorView stage(std::size_t index, const Shape& shape) override {
        return context_.stage(places_[index], shape);
    }
    void bind(std::size_t index, const TensorView& view, std::shared_ptr<const void> owner) override {
        context_.bind(places_[index], view);
        owners_.push_back(std::move(owner));
    }

 private:
    Context& context_;
    const std::vector<std::size_t>& places_;
    std::vector<std::shared_ptr<const void>> owners_;
};

/// Puts inputs into tensors.
class TensorSink final : public detail::InputSink {
 public:
    explicit TensorSink(const Manifest& manifest) : manifest_(manifest) {}

    MutableTensorView stage(std::size_t index, const Shape& shape) override {
        const auto& spec = manifest_.inputs[index];
        auto& tensor = tensors.insert_or_assign(spec.name, Tensor(spec.type, shape)).first->second;
        return {tensor.data(), spec.type, shape, Memory::Host};
    }
    void bind(std::size_t index, const TensorView& view, std::shared_ptr<const void> /*owner*/) override {
        tensors.insert_or_assign(manifest_.inputs[index].name, Tensor(view));
    }

    Tensors tensors;

 private:
    const Manifest& manifest_;
};

}  // namespace

Model::Impl::Impl(Manifest manifest, std::shared_ptr<detail::Executable> network, Opened opened)
    : manifest_(with_checked_task(std::move(manifest))),
      opened_(std::move(opened)),
      device_(network->device()),
      takes_device_memory_(network->takes(Memory::Cuda)),
      inputs_(network->inputs()),
      outputs_(network->outputs()),
      network_(std::move(network)),
      feeder_(manifest_, opened_.threads),
      fixed_batch_(detail::check_network(manifest_, *network_)),
      chunk_(chunk_of(manifest_)),
      input_places_(places(manifest_.inputs, inputs_)),
      output_places_(places(manifest_.outputs, outputs_)),
      pool_(opened_.backend, network_) {}

void Model::Impl::run(const std::vector<Frame>& frames, bool together, const Use& use) const {
    pool_.check_open();
    const std::size_t at_once = together ? std::max<std::size_t>(frames.size(), 1) : chunk_;
    std::size_t step = std::min(at_once, static_cast<std::size_t>(opened_.max_batch.value_or(1 << 30)));
    if (fixed_batch_) {
        step = static_cast<std::size_t>(*fixed_batch_);
    }
    for (std::size_t start = 0; start < frames.size(); start += step) {
        const std::size_t count = std::min(step, frames.size() - start);
        const FrameRange part{frames.data() + start, count, start};
        run_part(part, fixed_batch_ ? step : count, use);
    }
}

void Model::Impl::run_part(const FrameRange& frames, std::size_t batch, const Use& use) const {
    for (std::size_t i = 0; i < frames.count; ++i) {
        if (!takes_device_memory_ && frames.begin[i].memory != Memory::Host) {
            throw ImageError("image " + std::to_string(frames.first + i) +
                             " lies in the GPU's memory, which the network on " + device_ +
                             " does not take: copy it to the host first");
        }
    }
    pool_.with_context([&](Context& context) {
        ContextSink sink(context, input_places_);
        const FrameSizes sizes = feeder_.feed(frames, batch, sink);
        const Outputs outputs = ordered(context.run(), frames.count);
        check_finite(outputs.views());
        use(outputs, sizes);
    });
}

Tensors Model::Impl::run(const TensorViews& inputs) const {
    pool_.check_open();
    const auto checked = detail::check_feeds(*network_, inputs);
    return pool_.with_context([&](Context& context) {
        for (std::size_t i = 0; i < checked.size(); ++i) {
            context.bind(i, checked[i]);
        }
        const auto views = context.run();
        Tensors results;
        for (std::size_t i = 0; i < views.size(); ++i) {
            results.emplace(outputs_[i].name, Tensor(views[i]));
        }
        return results;
    });
}

Tensors Model::Impl::feeds(const std::vector<Frame>& frames) const {
    if (frames.empty()) {
        throw ImageError("there are no images to feed to the network: give one at least");
    }
    TensorSink sink(manifest_);
    static_cast<void>(feeder_.feed({frames.data(), frames.size(), 0}, frames.size(), sink));
    return std::move(sink.tensors);
}

/// The network's outputs in the manifest's order, cut to the entries that belong to frames.
Outputs Model::Impl::ordered(const std::vector<TensorView>& outputs, std::size_t filled) const {
    std::vector<TensorView> views;
    for (const std::size_t place : output_places_) {
        views.push_back(outputs[place]);
        auto& shape = views.back().shape;
        if (shape.empty() || shape[0] < static_cast<std::int64_t>(filled)) {
            throw BundleError(manifest_.name + ": the network answered " + std::to_string(filled) + " images with " +
                              detail::repr(outputs_[place].name) + " of the shape " + detail::tuple(shape) +
                              "; export the model again");
        }
        shape[0] = static_cast<std::int64_t>(filled);
    }
    return {manifest_, std::move(views)};
}

void Model::Impl::check_finite(const std::vector<TensorView>& outputs) const {
    if (!std::all_of(outputs.begin(), outputs.end(), detail::all_finite)) {
        throw BackendError("the network answered with NaN or infinite values in " + opened_.precision + " on " +
                           opened_.backend + ": choose another precision");
    }
}

void Model::Impl::require(Task task, const char* method) const {
    if (manifest_.task != task) {
        throw ArgumentError(manifest_.name + " is a model of " + std::string(to_string(manifest_.task)) + ": " +
                            method + " is for " + std::string(to_string(task)));
    }
}

}  // namespace holocron
