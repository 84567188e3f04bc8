#include "holocron/tensor.hpp"

#include <limits>

namespace holocron {

std::string_view to_string(ElementType type) noexcept {
    switch (type) {
        case ElementType::Float32:
            return "float32";
        case ElementType::Float16:
            return "float16";
        case ElementType::Float64:
            return "float64";
        case ElementType::UInt8:
            return "uint8";
        case ElementType::Int8:
            return "int8";
        case ElementType::Int32:
            return "int32";
        case ElementType::Int64:
            return "int64";
        case ElementType::Bool:
            return "bool";
    }
    return "unknown";
}

std::size_t element_size(ElementType type) noexcept {
    switch (type) {
        case ElementType::Float64:
        case ElementType::Int64:
            return 8;
        case ElementType::Float32:
        case ElementType::Int32:
            return 4;
        case ElementType::Float16:
            return 2;
        case ElementType::UInt8:
        case ElementType::Int8:
        case ElementType::Bool:
            break;
    }
    return 1;
}

std::size_t element_count(const Shape& shape) {
    constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    bool empty = false;
    for (const auto extent : shape) {
        if (extent < 0) {
            throw InputError("a shape has the extent " + std::to_string(extent) + ": expected 0 at least");
        }
        empty = empty || extent == 0;
    }
    if (empty) {
        return 0;
    }
    std::uint64_t count = 1;
    for (const auto extent : shape) {
        if (count > limit / static_cast<std::uint64_t>(extent)) {
            throw InputError("a shape has more elements than a tensor can have");
        }
        count *= static_cast<std::uint64_t>(extent);
    }
    return count;
}

namespace detail {

void throw_wrong_element_type(ElementType has, ElementType wanted) {
    throw InputError("the tensor is " + std::string(to_string(has)) + ", it was taken for " +
                     std::string(to_string(wanted)));
}

}  // namespace detail

namespace {

std::size_t checked_bytes(ElementType type, const Shape& shape) {
    const std::size_t count = element_count(shape);
    if (count > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()) / element_size(type)) {
        throw InputError("a shape has more elements than a tensor can have");
    }
    return count * element_size(type);
}

}  // namespace

Tensor::Tensor(ElementType type, Shape shape)
    : type_(type), shape_(std::move(shape)), bytes_(checked_bytes(type_, shape_)) {}

Tensor::Tensor(const TensorView& view) : type_(view.type), shape_(view.shape) {
    const std::size_t size = checked_bytes(type_, shape_);
    if (view.memory != Memory::Host) {
        throw InputError("the tensor lies in the GPU's memory: copy it to the host first");
    }
    if (view.data == nullptr && size != 0) {
        throw InputError("the tensor's data is null");
    }
    const auto* begin = static_cast<const std::byte*>(view.data);
    if (size != 0) {
        bytes_.assign(begin, begin + size);
    }
}

}  // namespace holocron
