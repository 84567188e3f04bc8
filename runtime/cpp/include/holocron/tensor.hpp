/// \file
/// Arrays with an element type and a shape: what networks take and give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "holocron/errors.hpp"
#include "holocron/export.h"
#include "holocron/memory.hpp"

namespace holocron {

/// Type of the elements of a tensor.
enum class ElementType { Float32, Float16, Float64, UInt8, Int8, Int32, Int64, Bool };

/// Name of an element type as it stands in a manifest, e.g. `"float32"`.
[[nodiscard]] HOLOCRON_API std::string_view to_string(ElementType type) noexcept;

/// Bytes of one element.
[[nodiscard]] HOLOCRON_API std::size_t element_size(ElementType type) noexcept;

namespace detail {
template <typename T>
struct ElementTypeOf;
template <>
struct ElementTypeOf<float> {
    static constexpr ElementType value = ElementType::Float32;
};
template <>
struct ElementTypeOf<double> {
    static constexpr ElementType value = ElementType::Float64;
};
template <>
struct ElementTypeOf<std::uint8_t> {
    static constexpr ElementType value = ElementType::UInt8;
};
template <>
struct ElementTypeOf<std::int8_t> {
    static constexpr ElementType value = ElementType::Int8;
};
template <>
struct ElementTypeOf<std::int32_t> {
    static constexpr ElementType value = ElementType::Int32;
};
template <>
struct ElementTypeOf<std::int64_t> {
    static constexpr ElementType value = ElementType::Int64;
};
template <>
struct ElementTypeOf<bool> {
    static constexpr ElementType value = ElementType::Bool;
};

[[noreturn]] HOLOCRON_API void throw_wrong_element_type(ElementType has, ElementType wanted);
}  // namespace detail

/// Extents of a tensor, the outermost dimension first; empty for a scalar.
using Shape = std::vector<std::int64_t>;

/// Number of elements of a shape: the product of its extents.
///
/// \throws InputError if an extent is negative, or the product does not fit into 63 bits
[[nodiscard]] HOLOCRON_API std::size_t element_count(const Shape& shape);

/// One dimension of what a network takes or gives: a number, or the name of one that may vary, e.g. `"batch"`.
using Dimension = std::variant<std::int64_t, std::string>;

/// One input or output of a network.
struct TensorSpec {
    std::string name;              ///< in the network's graph
    ElementType type;              ///< of its elements
    std::vector<Dimension> shape;  ///< e.g. `{"batch", 3, 224, 224}`
};

/// A dense tensor in C order in memory that somebody else owns.
struct TensorView {
    const void* data = nullptr;
    ElementType type = ElementType::Float32;
    Shape shape;
    Memory memory = Memory::Host;

    TensorView() = default;
    TensorView(const void* pointer, ElementType of, Shape extents, Memory where = Memory::Host)
        : data(pointer), type(of), shape(std::move(extents)), memory(where) {}

    /// Elements of the type that the pointer says.
    template <typename T, ElementType Of = detail::ElementTypeOf<T>::value>
    TensorView(const T* pointer, Shape extents, Memory where = Memory::Host)
        : data(pointer), type(Of), shape(std::move(extents)), memory(where) {}

    /// Bytes that it takes.
    [[nodiscard]] std::size_t byte_count() const { return element_count(shape) * element_size(type); }

    /// The elements. \throws InputError if they are of another type
    template <typename T>
    [[nodiscard]] const T* elements() const {
        if (type != detail::ElementTypeOf<T>::value) {
            detail::throw_wrong_element_type(type, detail::ElementTypeOf<T>::value);
        }
        return static_cast<const T*>(data);
    }
};

/// The same of memory that may be written.
struct MutableTensorView {
    void* data = nullptr;
    ElementType type = ElementType::Float32;
    Shape shape;
    Memory memory = Memory::Host;

    /// Bytes that it takes.
    [[nodiscard]] std::size_t byte_count() const { return element_count(shape) * element_size(type); }

    /// The elements. \throws InputError if they are of another type
    template <typename T>
    [[nodiscard]] T* elements() const {
        if (type != detail::ElementTypeOf<T>::value) {
            detail::throw_wrong_element_type(type, detail::ElementTypeOf<T>::value);
        }
        return static_cast<T*>(data);
    }
};

/// A dense tensor in C order that owns its memory, on the host.
class HOLOCRON_API Tensor {
 public:
    Tensor() = default;

    /// A tensor of zeros. \throws InputError if the shape has a negative extent or is too large
    Tensor(ElementType type, Shape shape);

    /// A copy of what lies in host memory. \throws InputError if it does not, or it is null where there are elements
    explicit Tensor(const TensorView& view);

    [[nodiscard]] ElementType type() const noexcept { return type_; }
    [[nodiscard]] const Shape& shape() const noexcept { return shape_; }
    /// Number of elements.
    [[nodiscard]] std::size_t size() const noexcept { return bytes_.size() / element_size(type_); }
    [[nodiscard]] std::size_t byte_count() const noexcept { return bytes_.size(); }
    [[nodiscard]] const void* data() const noexcept { return bytes_.data(); }
    [[nodiscard]] void* data() noexcept { return bytes_.data(); }

    /// The elements. \throws InputError if they are of another type
    template <typename T>
    [[nodiscard]] const T* elements() const {
        return view().elements<T>();
    }
    template <typename T>
    [[nodiscard]] T* elements() {
        return MutableTensorView{bytes_.data(), type_, shape_, Memory::Host}.template elements<T>();
    }

    /// The same without a copy, valid as long as this tensor.
    [[nodiscard]] TensorView view() const { return {bytes_.data(), type_, shape_, Memory::Host}; }

 private:
    ElementType type_ = ElementType::Float32;
    Shape shape_{0};
    std::vector<std::byte> bytes_;
};

/// Tensors by the names of a network's inputs or outputs.
using Tensors = std::map<std::string, Tensor>;
/// The same in memory of the caller's.
using TensorViews = std::map<std::string, TensorView>;

}  // namespace holocron
