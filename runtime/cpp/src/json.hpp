/// \file
/// JSON (RFC 8259), read strictly: what docs/bundle.md allows and no more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace holocron::detail {

/// An integer that does not fit into 64 bits.
struct BigInteger {
    std::string digits;  ///< as they were written
    double nearest = 0;  ///< the nearest number there is
};

struct JsonValue;
struct JsonMember;

/// A decoded value. The members of an object are sorted by key, and no two have the same.
struct JsonValue {
    using Array = std::vector<JsonValue>;
    using Object = std::vector<JsonMember>;

    std::variant<std::nullptr_t, bool, std::int64_t, BigInteger, double, std::string, Array, Object> value;

    [[nodiscard]] bool is_null() const noexcept { return std::holds_alternative<std::nullptr_t>(value); }
    /// The value as a type; null if it is of another.
    template <typename T>
    [[nodiscard]] const T* as() const noexcept {
        return std::get_if<T>(&value);
    }
};

struct JsonMember {
    std::string key;
    JsonValue value;
};

/// The value of a key; null if the object has no such key.
[[nodiscard]] const JsonValue* find(const JsonValue::Object& object, std::string_view key);

/// Text is not JSON, or not such as is accepted here.
class JsonError : public std::runtime_error {
 public:
    using std::runtime_error::runtime_error;
};

/// Decode JSON of UTF-8 text.
///
/// \throws JsonError if it is not JSON, an object has the same key twice, a number is too large, or it is nested too
///         deeply
[[nodiscard]] JsonValue parse_json(std::string_view text);

/// A value for an error message, as Python's `reprlib.repr` writes it: one short line, whatever it is.
[[nodiscard]] std::string shortened(const JsonValue& value);

/// What JSON calls a value, e.g. `"an object"`.
[[nodiscard]] std::string kind_of(const JsonValue& value);

}  // namespace holocron::detail
