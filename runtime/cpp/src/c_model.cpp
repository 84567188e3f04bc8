#include <filesystem>
#include <iterator>
#include <utility>
#include <variant>

#include "c_support.hpp"

using holocron::detail::describe;
using holocron::detail::entry;
using holocron::detail::frames_of;
using holocron::detail::guarded;
using holocron::detail::needed;
using holocron::detail::views_of;

namespace {

std::string text_of(const char* text) { return text == nullptr ? std::string() : std::string(text); }

holocron::LoadOptions options_of(const holocron_load_options& given) {
    if (given.size != sizeof(holocron_load_options)) {
        throw holocron::ArgumentError("options.size is " + std::to_string(given.size) + ", expected " +
                                      std::to_string(sizeof(holocron_load_options)) +
                                      ": set the options up with holocron_load_options_init");
    }
    holocron::LoadOptions options;
    options.backend = text_of(given.backend);
    options.precision = text_of(given.precision);
    options.device = text_of(given.device);
    options.threads = given.threads;
    options.concurrency = given.concurrency;
    options.engine = {given.contexts, given.cuda_graphs != 0, given.zero_copy != 0};
    return options;
}

std::vector<std::vector<std::int64_t>> shapes_of(const std::vector<holocron::TensorSpec>& specs) {
    std::vector<std::vector<std::int64_t>> shapes;
    for (const auto& spec : specs) {
        auto& shape = shapes.emplace_back();
        for (const auto& dimension : spec.shape) {
            const auto* fixed = std::get_if<std::int64_t>(&dimension);
            shape.push_back(fixed == nullptr ? -1 : *fixed);
        }
    }
    return shapes;
}

void describe_spec(const std::vector<holocron::TensorSpec>& specs, const std::vector<std::vector<std::int64_t>>& shapes,
                   std::size_t index, holocron_tensor& target) {
    const auto& spec = entry(specs, index, "index");
    target = {spec.name.c_str(),    static_cast<std::int32_t>(spec.type),
              HOLOCRON_MEMORY_HOST, shapes[index].size(),
              shapes[index].data(), nullptr};
}

/// A string of a model's; null, and the error set, if there is no model.
template <typename Get>
const char* string_of(const holocron_model* model, Get get) noexcept {
    const char* text = nullptr;
    guarded([&] { text = get(needed(model, "model")); });
    return text;
}

/// A number of a model's; 0, and the error set, if there is no model.
template <typename Get>
std::size_t number_of(const holocron_model* model, Get get) noexcept {
    std::size_t number = 0;
    guarded([&] { number = get(needed(model, "model")); });
    return number;
}

/// Make tensors and hand them out.
template <typename Make>
holocron_status make_tensors(const holocron_model* model, holocron_tensors** target, const char* name,
                             Make make) noexcept {
    return guarded([&] {
        needed(target, name) = nullptr;
        auto made = std::make_unique<holocron_tensors>();
        made->tensors = make(needed(model, "model").model);
        *target = made.release();
    });
}

}  // namespace

extern "C" {

const char* holocron_version(void) { return holocron::version(); }

holocron_status holocron_load_options_init(holocron_load_options* options) {
    return guarded([&] {
        const holocron::EngineOptions engine;
        needed(options, "options") = {
            sizeof(holocron_load_options), nullptr, nullptr, nullptr, 0, 1, engine.contexts, engine.cuda_graphs ? 1 : 0,
            engine.zero_copy ? 1 : 0};
    });
}

holocron_status holocron_load(const char* path, const holocron_load_options* options, holocron_model** model) {
    return guarded([&] {
        needed(model, "model") = nullptr;
        const auto wanted = options == nullptr ? holocron::LoadOptions{} : options_of(*options);
        auto loaded = holocron::load(std::filesystem::path(&needed(path, "path")), wanted);
        auto inputs = shapes_of(loaded.inputs());
        auto outputs = shapes_of(loaded.outputs());
        auto made =
            std::make_unique<holocron_model>(holocron_model{std::move(loaded), std::move(inputs), std::move(outputs)});
        *model = made.release();
    });
}

holocron_status holocron_model_warm_up(const holocron_model* model, int32_t height, int32_t width) {
    return guarded([&] { needed(model, "model").model.warm_up({height, width}); });
}

holocron_status holocron_model_close(holocron_model* model) {
    return guarded([&] { needed(model, "model").model.close(); });
}

void holocron_model_free(holocron_model* model) { const std::unique_ptr<holocron_model> owned(model); }

const char* holocron_model_name(const holocron_model* model) {
    return string_of(model, [](const auto& m) { return m.model.name().c_str(); });
}

const char* holocron_model_precision(const holocron_model* model) {
    return string_of(model, [](const auto& m) { return m.model.precision().c_str(); });
}

const char* holocron_model_backend(const holocron_model* model) {
    return string_of(model, [](const auto& m) { return m.model.backend().c_str(); });
}

const char* holocron_model_device(const holocron_model* model) {
    return string_of(model, [](const auto& m) { return m.model.device().c_str(); });
}

const char* holocron_model_artefact(const holocron_model* model) {
    return string_of(model, [](const auto& m) { return m.model.artefact().c_str(); });
}

const char* holocron_model_label(const holocron_model* model, size_t index) {
    return string_of(model, [index](const auto& m) { return entry(m.model.labels(), index, "index").c_str(); });
}

holocron_status holocron_model_task(const holocron_model* model, holocron_task* task) {
    return guarded([&] {
        needed(task, "task") = static_cast<holocron_task>(static_cast<int>(needed(model, "model").model.task()));
    });
}

holocron_status holocron_model_threads(const holocron_model* model, int32_t* threads) {
    return guarded([&] { needed(threads, "threads") = needed(model, "model").model.threads(); });
}

holocron_status holocron_model_input_size(const holocron_model* model, int32_t* height, int32_t* width) {
    return guarded([&] {
        const holocron::Size size = needed(model, "model").model.input_size();
        needed(height, "height") = size.height;
        needed(width, "width") = size.width;
    });
}

size_t holocron_model_label_count(const holocron_model* model) {
    return number_of(model, [](const auto& m) { return m.model.labels().size(); });
}

size_t holocron_model_input_count(const holocron_model* model) {
    return number_of(model, [](const auto& m) { return m.model.inputs().size(); });
}

size_t holocron_model_output_count(const holocron_model* model) {
    return number_of(model, [](const auto& m) { return m.model.outputs().size(); });
}

holocron_status holocron_model_input(const holocron_model* model, size_t index, holocron_tensor* tensor) {
    return guarded([&] {
        const auto& m = needed(model, "model");
        describe_spec(m.model.inputs(), m.input_shapes, index, needed(tensor, "tensor"));
    });
}

holocron_status holocron_model_output(const holocron_model* model, size_t index, holocron_tensor* tensor) {
    return guarded([&] {
        const auto& m = needed(model, "model");
        describe_spec(m.model.outputs(), m.output_shapes, index, needed(tensor, "tensor"));
    });
}

holocron_status holocron_run_frames(const holocron_model* model, const holocron_frame* frames, size_t count,
                                    holocron_tensors** outputs) {
    return make_tensors(model, outputs, "outputs",
                        [&](const holocron::Model& m) { return m.run(frames_of(frames, count)); });
}

holocron_status holocron_feeds(const holocron_model* model, const holocron_frame* frames, size_t count,
                               holocron_tensors** inputs) {
    return make_tensors(model, inputs, "inputs",
                        [&](const holocron::Model& m) { return m.feeds(frames_of(frames, count)); });
}

holocron_status holocron_run(const holocron_model* model, const holocron_tensor* inputs, size_t count,
                             holocron_tensors** outputs) {
    return make_tensors(model, outputs, "outputs",
                        [&](const holocron::Model& m) { return m.run(views_of(inputs, count)); });
}

void holocron_tensors_free(holocron_tensors* tensors) { const std::unique_ptr<holocron_tensors> owned(tensors); }

size_t holocron_tensors_count(const holocron_tensors* tensors) {
    return tensors == nullptr ? 0 : tensors->tensors.size();
}

holocron_status holocron_tensors_at(const holocron_tensors* tensors, size_t index, holocron_tensor* tensor) {
    return guarded([&] {
        const auto& all = needed(tensors, "tensors").tensors;
        auto& target = needed(tensor, "tensor");
        if (index >= all.size()) {
            throw holocron::ArgumentError("index is " + std::to_string(index) + ", and there are " +
                                          std::to_string(all.size()));
        }
        const auto found = std::next(all.begin(), static_cast<std::ptrdiff_t>(index));
        describe(found->first, found->second, target);
    });
}

holocron_status holocron_tensors_find(const holocron_tensors* tensors, const char* name, holocron_tensor* tensor) {
    return guarded([&] {
        const auto& all = needed(tensors, "tensors").tensors;
        const std::string wanted = &needed(name, "name");
        auto& target = needed(tensor, "tensor");
        const auto found = all.find(wanted);
        if (found == all.end()) {
            throw holocron::ArgumentError("there is no tensor '" + wanted + "'");
        }
        describe(found->first, found->second, target);
    });
}

}  // extern "C"
