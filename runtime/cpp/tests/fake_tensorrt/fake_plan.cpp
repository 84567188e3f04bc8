#include <algorithm>
#include <sstream>

#include "fake_tensorrt.hpp"

namespace fake {

const char* const kWeights = "the weights of the network";

namespace {

constexpr const char* kMagic = "holocron-fake-plan";

void read_shape(std::istream& in, std::vector<std::int64_t>& shape) {
    std::size_t size = 0;
    in >> size;
    shape.resize(std::min<std::size_t>(size, 8));
    for (auto& extent : shape) {
        in >> extent;
    }
}

}  // namespace

std::optional<Plan> parse_plan(const std::string& text) {
    std::istringstream in(text);
    std::string magic;
    std::size_t inputs = 0;
    std::size_t outputs = 0;
    Plan plan;
    in >> magic >> plan.workspace >> plan.stripped >> plan.data_dependent >> plan.capturable >> plan.needs_host_code >>
        inputs >> outputs;
    if (magic != kMagic) {
        return std::nullopt;
    }
    const auto read = [&in](std::vector<PlanTensor>& tensors, std::size_t count) {
        tensors.resize(count);
        for (auto& tensor : tensors) {
            int type = 0;
            int location = 0;
            int format = 0;
            in >> tensor.name >> type >> location >> format;
            tensor.type = static_cast<nvinfer1::DataType>(type);
            tensor.location = static_cast<nvinfer1::TensorLocation>(location);
            tensor.format = static_cast<nvinfer1::TensorFormat>(format);
            read_shape(in, tensor.smallest);
            read_shape(in, tensor.largest);
        }
    };
    read(plan.inputs, inputs);
    read(plan.outputs, outputs);
    return in ? std::optional<Plan>(plan) : std::nullopt;
}

std::string Plan::serialize() const {
    std::ostringstream out;
    out << kMagic << ' ' << workspace << ' ' << stripped << ' ' << data_dependent << ' ' << capturable << ' '
        << needs_host_code << ' ' << inputs.size() << ' ' << outputs.size();
    const auto write_shape = [&out](const std::vector<std::int64_t>& shape) {
        out << ' ' << shape.size();
        for (const auto extent : shape) {
            out << ' ' << extent;
        }
    };
    for (const auto* tensors : {&inputs, &outputs}) {
        for (const auto& tensor : *tensors) {
            out << ' ' << tensor.name << ' ' << static_cast<int>(tensor.type) << ' '
                << static_cast<int>(tensor.location) << ' ' << static_cast<int>(tensor.format);
            write_shape(tensor.smallest);
            write_shape(tensor.largest);
        }
    }
    return out.str();
}

Library& library() {
    static Library instance;
    return instance;
}

void Library::reset() { *this = Library(); }

void refuse(const std::string& method, int after) { library().refusals[method] = after; }

}  // namespace fake
