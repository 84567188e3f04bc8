#include "text.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "unicode.hpp"

namespace holocron::detail {

namespace {

// What Python's reprlib keeps of a string: 30 characters, 13 of them in front of the dots and 14 behind.
constexpr std::size_t kLongestText = 30;
constexpr std::size_t kHead = 13;
constexpr std::size_t kTail = 14;

std::string hexadecimal(char32_t value, int digits) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) {
        text += kDigits[(value >> static_cast<unsigned>(shift)) & 0xFU];
    }
    return text;
}

std::u32string repr_of(const std::u32string& text) {
    const bool has_single = text.find(U'\'') != std::u32string::npos;
    const bool has_double = text.find(U'"') != std::u32string::npos;
    const char32_t quote = has_single && !has_double ? U'"' : U'\'';
    std::u32string result{quote};
    const auto append = [&result](std::string_view ascii) { result.append(ascii.begin(), ascii.end()); };
    for (const char32_t c : text) {
        if (c == quote || c == U'\\') {
            result += U'\\';
            result += c;
        } else if (c == U'\n') {
            append("\\n");
        } else if (c == U'\r') {
            append("\\r");
        } else if (c == U'\t') {
            append("\\t");
        } else if (is_printable(c)) {
            result += c;
        } else if (c <= 0xFF) {
            append("\\x" + hexadecimal(c, 2));
        } else if (c <= 0xFFFF) {
            append("\\u" + hexadecimal(c, 4));
        } else {
            append("\\U" + hexadecimal(c, 8));
        }
    }
    result += quote;
    return result;
}

template <typename Range, typename Word>
std::string tuple_of(const Range& range, Word word) {
    std::vector<std::string> words;
    for (const auto& each : range) {
        words.push_back(word(each));
    }
    return words.size() == 1 ? "(" + words[0] + ",)" : "(" + joined(words) + ")";
}

}  // namespace

std::string repr(std::string_view text) { return to_utf8(repr_of(from_utf8(text))); }

std::string shortened_repr(std::string_view text) {
    const std::u32string all = from_utf8(text);
    std::u32string result = repr_of(all.substr(0, kLongestText));
    if (result.size() > kLongestText) {
        result = repr_of(all.substr(0, kHead) + all.substr(all.size() - std::min(all.size(), kTail)));
        result = result.substr(0, kHead) + U"..." + result.substr(result.size() - kTail);
    }
    return to_utf8(result);
}

std::string repr(double number) {
    if (std::isnan(number)) {
        return "nan";
    }
    if (std::isinf(number)) {
        return number > 0 ? "inf" : "-inf";
    }
    std::array<char, 64> buffer{};
    // Python writes exponents below -4 and from 16 on; the exponent is read from the scientific form.
    auto* end = buffer.data() + buffer.size();
    auto written = std::to_chars(buffer.data(), end, number, std::chars_format::scientific);
    std::string scientific(buffer.data(), written.ptr);
    const int exponent = std::atoi(scientific.c_str() + scientific.find('e') + 1);
    if (number != 0 && (exponent < -4 || exponent >= 16)) {
        return scientific;
    }
    written = std::to_chars(buffer.data(), end, number, std::chars_format::fixed);
    std::string fixed(buffer.data(), written.ptr);
    return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

std::string joined(const std::vector<std::string>& words, std::string_view separator) {
    std::string text;
    for (const auto& word : words) {
        if (!text.empty() || &word != &words.front()) {
            text += separator;
        }
        text += word;
    }
    return text;
}

std::string quoted_names(const std::vector<TensorSpec>& specs) {
    std::vector<std::string> names;
    for (const auto& spec : specs) {
        names.push_back(repr(spec.name));
    }
    return joined(names);
}

std::string tuple(const std::vector<Dimension>& shape) {
    return tuple_of(shape, [](const Dimension& dimension) {
        const auto* fixed = std::get_if<std::int64_t>(&dimension);
        return fixed != nullptr ? std::to_string(*fixed) : repr(std::get<std::string>(dimension));
    });
}

std::string tuple(const Shape& shape) {
    return tuple_of(shape, [](std::int64_t extent) { return std::to_string(extent); });
}

std::string one_line(std::string_view error) {
    constexpr std::size_t kLongest = 300;
    std::u32string text;
    for (const char32_t c : from_utf8(error)) {
        const bool is_space = c == U' ' || (c >= U'\t' && c <= U'\r');
        if (!is_space) {
            text += c;
        } else if (!text.empty() && text.back() != U' ') {
            text += U' ';
        }
    }
    if (!text.empty() && text.back() == U' ') {
        text.pop_back();
    }
    return to_utf8(text.size() <= kLongest ? text : text.substr(0, kLongest - 1) + U"…");
}

}  // namespace holocron::detail
