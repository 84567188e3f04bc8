#include "json.hpp"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "json_syntax.hpp"
#include "text.hpp"

namespace holocron::detail {

namespace {

using Json = nlohmann::json;

/// Builds values from the events of nlohmann's parser, which by itself would take the last of two equal keys.
class Builder final : public nlohmann::json_sax<Json> {
 public:
    bool null() override { return add({nullptr}); }
    bool boolean(bool value) override { return add({value}); }
    bool number_integer(number_integer_t value) override { return add({static_cast<std::int64_t>(value)}); }
    bool number_unsigned(number_unsigned_t value) override {
        if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
            return add({BigInteger{std::to_string(value), static_cast<double>(value)}});
        }
        return add({static_cast<std::int64_t>(value)});
    }
    bool number_float(number_float_t value, const string_t& digits) override {
        if (digits.find_first_of(".eE") == string_t::npos) {
            return add({BigInteger{digits, value}});
        }
        return add({value});
    }
    bool string(string_t& value) override { return add({std::move(value)}); }
    bool binary(binary_t& /*value*/) override { return false; }

    bool start_object(std::size_t /*count*/) override { return open({JsonValue::Object{}}); }
    bool key(string_t& value) override {
        open_.back().key = std::move(value);
        return true;
    }
    bool end_object() override {
        auto& members = std::get<JsonValue::Object>(open_.back().value.value);
        const auto by_key = [](const JsonMember& a, const JsonMember& b) { return a.key < b.key; };
        std::sort(members.begin(), members.end(), by_key);
        const auto same = [](const JsonMember& a, const JsonMember& b) { return a.key == b.key; };
        // Readers differ in which of two equal keys they take: what one checks, another would not open.
        if (std::adjacent_find(members.begin(), members.end(), same) != members.end()) {
            error_ = "an object has the same key twice";
            return false;
        }
        return close();
    }
    bool start_array(std::size_t /*count*/) override { return open({JsonValue::Array{}}); }
    bool end_array() override { return close(); }

    bool parse_error(std::size_t position, const std::string& /*token*/, const Json::exception& e) override {
        const bool overflow = dynamic_cast<const Json::out_of_range*>(&e) != nullptr;
        error_ = overflow ? "a number is too large" : "a syntax error at byte " + std::to_string(position);
        return false;
    }

    JsonValue take() { return std::move(result_); }
    [[nodiscard]] const std::string& error() const noexcept { return error_; }

 private:
    struct Level {
        JsonValue value;
        std::string key;  // of the member that comes next
    };

    bool add(JsonValue value) {
        if (open_.empty()) {
            result_ = std::move(value);
            return true;
        }
        auto& level = open_.back();
        if (auto* array = std::get_if<JsonValue::Array>(&level.value.value)) {
            array->push_back(std::move(value));
        } else {
            std::get<JsonValue::Object>(level.value.value).push_back({std::move(level.key), std::move(value)});
        }
        return true;
    }

    bool open(JsonValue value) {
        open_.push_back({std::move(value), {}});
        return true;
    }

    bool close() {
        JsonValue done = std::move(open_.back().value);
        open_.pop_back();
        return add(std::move(done));
    }

    std::vector<Level> open_;
    JsonValue result_{nullptr};
    std::string error_;
};

// What Python's reprlib shows: 6 levels, 4 members of an object, 6 entries of a list, 40 digits of an integer.
constexpr int kLevels = 6;
constexpr std::size_t kMembers = 4;
constexpr std::size_t kEntries = 6;
constexpr std::size_t kDigits = 40;

std::string shortened_at(const JsonValue& value, int level);

std::string shortened_number(std::string digits) {
    if (digits.size() > kDigits) {
        const std::size_t head = (kDigits - 3) / 2;
        return digits.substr(0, head) + "..." + digits.substr(digits.size() - (kDigits - 3 - head));
    }
    return digits;
}

std::string shortened_array(const JsonValue::Array& array, int level) {
    std::vector<std::string> pieces;
    if (level <= 0 && !array.empty()) {
        return "[...]";
    }
    for (std::size_t i = 0; i < std::min(array.size(), kEntries); ++i) {
        pieces.push_back(shortened_at(array[i], level - 1));
    }
    if (array.size() > kEntries) {
        pieces.emplace_back("...");
    }
    return "[" + joined(pieces) + "]";
}

std::string shortened_object(const JsonValue::Object& object, int level) {
    std::vector<std::string> pieces;
    if (level <= 0 && !object.empty()) {
        return "{...}";
    }
    for (std::size_t i = 0; i < std::min(object.size(), kMembers); ++i) {
        pieces.push_back(shortened_repr(object[i].key) + ": " + shortened_at(object[i].value, level - 1));
    }
    if (object.size() > kMembers) {
        pieces.emplace_back("...");
    }
    return "{" + joined(pieces) + "}";
}

std::string shortened_at(const JsonValue& value, int level) {
    if (const auto* boolean = value.as<bool>()) {
        return *boolean ? "True" : "False";
    }
    if (const auto* integer = value.as<std::int64_t>()) {
        return std::to_string(*integer);
    }
    if (const auto* integer = value.as<BigInteger>()) {
        return shortened_number(integer->digits);
    }
    if (const auto* number = value.as<double>()) {
        return repr(*number);
    }
    if (const auto* text = value.as<std::string>()) {
        return shortened_repr(*text);
    }
    if (const auto* array = value.as<JsonValue::Array>()) {
        return shortened_array(*array, level);
    }
    if (const auto* object = value.as<JsonValue::Object>()) {
        return shortened_object(*object, level);
    }
    return "None";
}

}  // namespace

const JsonValue* find(const JsonValue::Object& object, std::string_view key) {
    const auto before = [](const JsonMember& member, std::string_view wanted) { return member.key < wanted; };
    const auto found = std::lower_bound(object.begin(), object.end(), key, before);
    return found != object.end() && found->key == key ? &found->value : nullptr;
}

JsonValue parse_json(std::string_view text) {
    // nlohmann's parser passes over a byte order mark, takes a NUL for the end, and any depth.
    if (const auto mistake = json_mistake(text)) {
        throw JsonError(*mistake);
    }
    Builder builder;
    if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
        throw JsonError(builder.error());
    }
    return builder.take();
}

std::string shortened(const JsonValue& value) { return shortened_at(value, kLevels); }

std::string kind_of(const JsonValue& value) {
    if (value.as<JsonValue::Object>() != nullptr) {
        return "an object";
    }
    if (value.as<JsonValue::Array>() != nullptr) {
        return "a list";
    }
    if (value.as<std::string>() != nullptr) {
        return "a string";
    }
    if (value.as<bool>() != nullptr) {
        return "a boolean";
    }
    return value.is_null() ? "null" : "a number";
}

}  // namespace holocron::detail
