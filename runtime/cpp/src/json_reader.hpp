/// \file
/// Reading values out of decoded JSON: each is of the type that is expected, or the error names its place.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "holocron/errors.hpp"
#include "json.hpp"

namespace holocron::detail {

/// Words, one of which is expected.
using Choices = std::initializer_list<std::string_view>;

/// Checks values of decoded JSON. Its methods throw a BundleError for any other value.
class JsonReader {
 public:
    /// \param where what to call the whole in an error
    explicit JsonReader(std::string where) : where_(std::move(where)) {}

    [[nodiscard]] const std::string& where() const noexcept { return where_; }

    /// An error, to be thrown, that names the place of what is wrong.
    [[nodiscard]] BundleError fail(const std::string& place, const std::string& message) const;

    /// Make sure that an object has the keys that it needs, and none but those and the optional ones.
    void keys(const JsonValue::Object& object, const std::string& place, Choices needed, Choices optional) const;

    /// An object.
    [[nodiscard]] const JsonValue::Object& mapping(const JsonValue& value, const std::string& place) const;

    /// A list.
    [[nodiscard]] const JsonValue::Array& list(const JsonValue& value, const std::string& place) const;

    /// A list whose entries `item` reads.
    template <typename Item>
    [[nodiscard]] auto sequence(const JsonValue& value, const std::string& place, Item item) const {
        const auto& entries = list(value, place);
        std::vector<decltype(item(value, place))> result;
        result.reserve(entries.size());
        for (std::size_t i = 0; i < entries.size(); ++i) {
            result.push_back(item(entries[i], place + "[" + std::to_string(i) + "]"));
        }
        return result;
    }

    /// A string.
    [[nodiscard]] const std::string& text(const JsonValue& value, const std::string& place) const;

    /// One of several strings. \return its place among them
    [[nodiscard]] std::size_t choice(const JsonValue& value, const std::string& place, Choices choices) const;

    /// An integer between two bounds, both included.
    [[nodiscard]] std::int64_t integer(const JsonValue& value, const std::string& place, std::int64_t lowest,
                                       std::int64_t highest) const;

    /// True or false.
    [[nodiscard]] bool boolean(const JsonValue& value, const std::string& place) const;

    /// A finite number of magnitude 1e30 at most.
    [[nodiscard]] double number(const JsonValue& value, const std::string& place) const;

 private:
    std::string where_;
};

/// The value of a key that an object is known to have.
[[nodiscard]] const JsonValue& at(const JsonValue::Object& object, std::string_view key);

/// The value of a key; null if there is none, or it is JSON's null.
[[nodiscard]] const JsonValue* given(const JsonValue::Object& object, std::string_view key);

}  // namespace holocron::detail
