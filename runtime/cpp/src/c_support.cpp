#include "c_support.hpp"

#include <array>

namespace holocron::detail {

namespace {

constexpr std::array<ElementType, 8> kElementTypes{ElementType::Float32, ElementType::Float16, ElementType::Float64,
                                                   ElementType::UInt8,   ElementType::Int8,    ElementType::Int32,
                                                   ElementType::Int64,   ElementType::Bool};
constexpr std::array<Format, 6> kFormats{Format::RGB,  Format::BGR,  Format::RGBA,
                                         Format::BGRA, Format::Gray, Format::NV12};

constexpr std::array<Memory, 2> kMemories{Memory::Host, Memory::Cuda};

template <typename Enum, std::size_t Count>
Enum chosen(const std::array<Enum, Count>& values, std::int32_t number, const char* name) {
    if (number < 0 || static_cast<std::size_t>(number) >= Count) {
        throw ArgumentError("the " + std::string(name) + " is " + std::to_string(number) + ", expected 0 to " +
                            std::to_string(Count - 1));
    }
    return values[static_cast<std::size_t>(number)];
}

std::string& last_error() noexcept {
    thread_local std::string message;
    return message;
}

}  // namespace

void set_last_error(const char* message) noexcept {
    try {
        last_error() = message;
    } catch (...) {  // no memory for the message: none is better than that of another error
        last_error().clear();
    }
}

std::vector<Frame> frames_of(const holocron_frame* frames, std::size_t count) {
    if (count != 0) {
        static_cast<void>(needed(frames, "frames"));
    }
    std::vector<Frame> result;
    for (std::size_t i = 0; i < count; ++i) {
        const holocron_frame& each = frames[i];
        Frame frame{each.pixels, each.width, each.height, each.stride, chosen(kFormats, each.format, "frame's format")};
        if (each.region_x != 0 || each.region_y != 0 || each.region_width != 0 || each.region_height != 0) {
            frame.region = Region{each.region_x, each.region_y, each.region_width, each.region_height};
        }
        frame.chroma = each.chroma;
        frame.chroma_stride = each.chroma_stride;
        frame.memory = chosen(kMemories, each.memory, "frame's memory");
        result.push_back(frame);
    }
    return result;
}

TensorViews views_of(const holocron_tensor* tensors, std::size_t count) {
    if (count != 0) {
        static_cast<void>(needed(tensors, "inputs"));
    }
    TensorViews views;
    for (std::size_t i = 0; i < count; ++i) {
        const holocron_tensor& each = tensors[i];
        const std::string name = &needed(each.name, "inputs[].name");
        Shape shape;
        if (each.rank != 0) {
            const auto* extents = &needed(each.shape, "inputs[].shape");
            constexpr std::size_t kMostDimensions = 64;
            if (each.rank > kMostDimensions) {
                throw ArgumentError("inputs[].rank is " + std::to_string(each.rank) + ", expected " +
                                    std::to_string(kMostDimensions) + " at most");
            }
            shape.assign(extents, extents + each.rank);
        }
        TensorView view(each.data, chosen(kElementTypes, each.type, "tensor's type"), std::move(shape),
                        chosen(kMemories, each.memory, "tensor's memory"));
        if (!views.emplace(name, std::move(view)).second) {
            throw ArgumentError("the input '" + name + "' is given twice");
        }
    }
    return views;
}

void describe(const std::string& name, const Tensor& tensor, holocron_tensor& target) noexcept {
    target.name = name.c_str();
    target.type = static_cast<std::int32_t>(tensor.type());
    target.memory = HOLOCRON_MEMORY_HOST;
    target.rank = tensor.shape().size();
    target.shape = tensor.shape().data();
    target.data = tensor.data();
}

}  // namespace holocron::detail

extern "C" const char* holocron_last_error(void) { return holocron::detail::last_error().c_str(); }
