#include "json_reader.hpp"

#include <algorithm>
#include <cmath>

#include "text.hpp"

namespace holocron::detail {

namespace {

constexpr double kMaxNumber = 1e30;  // far inside float32, which numbers of the preprocessing become

bool has(Choices words, std::string_view word) { return std::find(words.begin(), words.end(), word) != words.end(); }

}  // namespace

BundleError JsonReader::fail(const std::string& place, const std::string& message) const {
    return BundleError(where_ + ": " + place + " " + message);
}

void JsonReader::keys(const JsonValue::Object& object, const std::string& place, Choices needed,
                      Choices optional) const {
    for (const auto& member : object) {  // in the order of the keys
        if (!has(needed, member.key) && !has(optional, member.key)) {
            throw fail(place, "has the unknown key " + shortened_repr(member.key));
        }
    }
    std::vector<std::string> missing;
    for (const auto key : needed) {
        if (find(object, key) == nullptr) {
            missing.emplace_back(key);
        }
    }
    if (!missing.empty()) {
        throw fail(place, "lacks the key " + repr(*std::min_element(missing.begin(), missing.end())));
    }
}

const JsonValue::Object& JsonReader::mapping(const JsonValue& value, const std::string& place) const {
    const auto* object = value.as<JsonValue::Object>();
    if (object == nullptr) {
        throw fail(place, "is " + kind_of(value) + ", expected an object");
    }
    return *object;
}

const JsonValue::Array& JsonReader::list(const JsonValue& value, const std::string& place) const {
    const auto* array = value.as<JsonValue::Array>();
    if (array == nullptr) {
        throw fail(place, "is " + kind_of(value) + ", expected a list");
    }
    return *array;
}

const std::string& JsonReader::text(const JsonValue& value, const std::string& place) const {
    const auto* string = value.as<std::string>();
    if (string == nullptr) {
        throw fail(place, "is " + kind_of(value) + ", expected a string");
    }
    return *string;
}

std::size_t JsonReader::choice(const JsonValue& value, const std::string& place, Choices choices) const {
    if (const auto* string = value.as<std::string>()) {
        const auto* found = std::find(choices.begin(), choices.end(), *string);
        if (found != choices.end()) {
            return static_cast<std::size_t>(found - choices.begin());
        }
    }
    std::vector<std::string> words(choices.begin(), choices.end());
    throw fail(place, "is " + shortened(value) + ", expected one of " + joined(words));
}

std::int64_t JsonReader::integer(const JsonValue& value, const std::string& place, std::int64_t lowest,
                                 std::int64_t highest) const {
    const auto* integer = value.as<std::int64_t>();
    if (integer == nullptr || *integer < lowest || *integer > highest) {
        throw fail(place, "is " + shortened(value) + ", expected an integer from " + std::to_string(lowest) + " to " +
                              std::to_string(highest));
    }
    return *integer;
}

bool JsonReader::boolean(const JsonValue& value, const std::string& place) const {
    const auto* boolean = value.as<bool>();
    if (boolean == nullptr) {
        throw fail(place, "is " + shortened(value) + ", expected true or false");
    }
    return *boolean;
}

double JsonReader::number(const JsonValue& value, const std::string& place) const {
    double number = std::nan("");
    if (const auto* integer = value.as<std::int64_t>()) {
        number = static_cast<double>(*integer);
    } else if (const auto* big = value.as<BigInteger>()) {
        number = big->nearest;
    } else if (const auto* real = value.as<double>()) {
        number = *real;
    }
    if (!(std::abs(number) <= kMaxNumber)) {
        throw fail(place, "is " + shortened(value) + ", expected a finite number");
    }
    return number;
}

const JsonValue& at(const JsonValue::Object& object, std::string_view key) {
    const auto* value = find(object, key);
    if (value == nullptr) {
        throw std::logic_error("a key was read before it was checked: " + std::string(key));
    }
    return *value;
}

const JsonValue* given(const JsonValue::Object& object, std::string_view key) {
    const auto* value = find(object, key);
    return value == nullptr || value->is_null() ? nullptr : value;
}

}  // namespace holocron::detail
