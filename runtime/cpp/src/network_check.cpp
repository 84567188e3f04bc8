#include "network_check.hpp"

#include <algorithm>
#include <cmath>

#include "convert.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

const TensorSpec* find(const std::vector<TensorSpec>& specs, const std::string& name) {
    const auto found = std::find_if(specs.begin(), specs.end(), [&](const auto& spec) { return spec.name == name; });
    return found == specs.end() ? nullptr : &*found;
}

/// Whether two shapes can be of one tensor: of equal length, and equal wherever both are numbers.
bool fits(const std::vector<Dimension>& said, const std::vector<Dimension>& found, std::size_t from) {
    if (said.size() != found.size()) {
        return false;
    }
    for (std::size_t i = from; i < said.size(); ++i) {
        const auto* a = std::get_if<std::int64_t>(&said[i]);
        const auto* b = std::get_if<std::int64_t>(&found[i]);
        if (a != nullptr && b != nullptr && *a != *b) {
            return false;
        }
    }
    return true;
}

void check_tensor(const Manifest& manifest, const TensorSpec& said, const TensorSpec& found) {
    if (said.name != found.name || said.type != found.type) {
        throw BundleError(manifest.name + ": the manifest says " + repr(said.name) + " of " +
                          std::string(to_string(said.type)) + ", the network has " + repr(found.name) + " of " +
                          std::string(to_string(found.type)) + "; export the model again");
    }
}

void check_shape(const Manifest& manifest, const TensorSpec& said, const TensorSpec& found) {
    if (!fits(said.shape, found.shape, 1)) {
        throw BundleError(manifest.name + ": the manifest says " + repr(said.name) + " of " + tuple(said.shape) +
                          ", the network has " + tuple(found.shape) + "; export the model again");
    }
}

void check_image_input(const Manifest& manifest, const std::vector<TensorSpec>& inputs) {
    if (manifest.inputs.size() != 1 || inputs.size() != 1) {
        throw BundleError(manifest.name + ": a network of images has one input; export the model again");
    }
    check_tensor(manifest, manifest.inputs[0], inputs[0]);
    const Size size = manifest.preprocessing.size;
    const Shape fed{3, size.height, size.width};
    std::vector<Dimension> wanted{std::string("batch")};
    wanted.insert(wanted.end(), fed.begin(), fed.end());
    if (!fits(wanted, inputs[0].shape, 1)) {
        throw BundleError(manifest.name + ": the network takes " + tuple(inputs[0].shape) + ", preprocessing gives " +
                          tuple(fed) + "; export the model again");
    }
}

void check_frame_inputs(const Manifest& manifest, const std::vector<TensorSpec>& inputs) {
    for (const auto& spec : manifest.inputs) {
        const auto* found = find(inputs, spec.name);
        if (found == nullptr || inputs.size() != manifest.inputs.size()) {
            throw BundleError(manifest.name + ": the manifest says the inputs " + quoted_names(manifest.inputs) +
                              ", the network has " + quoted_names(inputs) + "; export the model again");
        }
        check_tensor(manifest, spec, *found);
        check_shape(manifest, spec, *found);
    }
}

bool takes_shape(const TensorSpec& spec, const Shape& shape) {
    if (shape.size() != spec.shape.size()) {
        return false;
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
        const auto* wanted = std::get_if<std::int64_t>(&spec.shape[i]);
        if (wanted != nullptr ? shape[i] != *wanted : shape[i] < 1) {
            return false;
        }
    }
    return true;
}

std::string listed(const std::vector<Dimension>& shape) {
    std::vector<std::string> words;
    for (const auto& dimension : shape) {
        const auto* fixed = std::get_if<std::int64_t>(&dimension);
        words.push_back(fixed != nullptr ? std::to_string(*fixed) : std::get<std::string>(dimension));
    }
    return joined(words);
}

std::string non_finite(const TensorView& view) {
    const std::size_t count = element_count(view.shape);
    std::size_t nan = 0;
    std::size_t infinite = 0;
    for (std::size_t i = 0; i < count; ++i) {
        float value = 0;
        if (view.type == ElementType::Float64) {  // a large one would become infinite as float32
            const double wide = static_cast<const double*>(view.data)[i];
            value = std::isfinite(wide) ? 0.0F : static_cast<float>(wide);
        } else {
            to_floats(view, i, 1, &value);
        }
        nan += std::isnan(value) ? 1 : 0;
        infinite += std::isinf(value) ? 1 : 0;
    }
    std::vector<std::string> words;
    if (nan != 0) {
        words.push_back(std::to_string(nan) + " NaN");
    }
    if (infinite != 0) {
        words.push_back(std::to_string(infinite) + " infinite");
    }
    return joined(words, " and ");
}

void check_feed(const TensorSpec& spec, const TensorView& view, const Executable& network) {
    const std::string input = "the input " + repr(spec.name);
    if (!network.takes(view.memory)) {
        throw InputError(input + " lies in the GPU's memory, which the network on " + network.device() +
                         " does not take: copy it to the host first");
    }
    if (view.type != spec.type) {
        throw InputError(input + " is " + std::string(to_string(view.type)) + ": expected " +
                         std::string(to_string(spec.type)));
    }
    if (!takes_shape(spec, view.shape)) {
        throw InputError(input + " has the shape " + tuple(view.shape) + ": expected (" + listed(spec.shape) +
                         "), each 1 at least");
    }
    if (view.data == nullptr) {
        throw InputError(input + " has no data: its pointer is null");
    }
    static_cast<void>(view.byte_count());  // that it does not overflow
    if (view.memory == Memory::Host && !all_finite(view)) {
        throw InputError(input + " has " + non_finite(view) + ": every value must be finite");
    }
}

}  // namespace

std::optional<std::int64_t> check_network(const Manifest& manifest, const Executable& network) {
    if (manifest.frame) {
        check_frame_inputs(manifest, network.inputs());
    } else {
        check_image_input(manifest, network.inputs());
    }
    const auto& outputs = network.outputs();
    const bool same_names = outputs.size() == manifest.outputs.size() &&
                            std::all_of(manifest.outputs.begin(), manifest.outputs.end(),
                                        [&](const TensorSpec& spec) { return find(outputs, spec.name) != nullptr; });
    if (!same_names) {
        throw BundleError(manifest.name + ": the manifest says the outputs " + quoted_names(manifest.outputs) +
                          ", the network has " + quoted_names(outputs) + "; export the model again");
    }
    for (const auto& spec : manifest.outputs) {
        const auto& found = *find(outputs, spec.name);
        check_tensor(manifest, spec, found);
        check_shape(manifest, spec, found);
    }
    const auto& shape = network.inputs().front().shape;
    const auto* batch = shape.empty() ? nullptr : std::get_if<std::int64_t>(&shape.front());
    return batch == nullptr ? std::nullopt : std::optional<std::int64_t>(*batch);
}

std::vector<TensorView> check_feeds(const Executable& network, const TensorViews& feeds) {
    const auto& inputs = network.inputs();
    for (const auto& [name, view] : feeds) {
        if (find(inputs, name) == nullptr) {
            throw InputError("the network has no input " + repr(name) + ": it takes " + quoted_names(inputs));
        }
    }
    std::vector<TensorView> checked;
    for (const auto& spec : inputs) {
        const auto found = feeds.find(spec.name);
        if (found == feeds.end()) {
            throw InputError("the input " + repr(spec.name) + " is missing: the network takes " + quoted_names(inputs));
        }
        check_feed(spec, found->second, network);
        checked.push_back(found->second);
    }
    return checked;
}

}  // namespace holocron::detail
