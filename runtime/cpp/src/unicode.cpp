#include "unicode.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

namespace holocron::detail {

namespace {

constexpr char32_t kStray = 0xDC00;

/// Length of the sequence at the front of non-empty text and its code point; length 0 if it is not UTF-8.
std::pair<std::size_t, char32_t> decode(std::string_view text) {
    const auto byte = [&text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned lead = byte(0);
    if (lead < 0x80) {
        return {1, lead};
    }
    const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() < length) {
        return {0, 0};
    }
    char32_t code = lead & (0x7FU >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0U) != 0x80U) {
            return {0, 0};
        }
        code = (code << 6U) | (byte(i) & 0x3FU);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (overlong || surrogate || code > 0x10FFFF) {
        return {0, 0};
    }
    return {length, code};
}

}  // namespace

std::u32string from_utf8(std::string_view text) {
    std::u32string result;
    result.reserve(text.size());
    while (!text.empty()) {
        const auto [length, code] = decode(text);
        result += length == 0 ? kStray + static_cast<unsigned char>(text[0]) : code;
        text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return result;
}

std::string to_utf8(const std::u32string& text) {
    std::string result;
    result.reserve(text.size());
    const auto append = [&result](char32_t byte) { result += static_cast<char>(static_cast<unsigned char>(byte)); };
    for (const char32_t c : text) {
        if (c < 0x80) {
            append(c);
        } else if (c < 0x800) {
            append(0xC0U | (c >> 6U));
            append(0x80U | (c & 0x3FU));
        } else if (c >= kStray + 0x80 && c <= kStray + 0xFF) {
            append(c - kStray);
        } else if (c < 0x10000) {
            append(0xE0U | (c >> 12U));
            append(0x80U | ((c >> 6U) & 0x3FU));
            append(0x80U | (c & 0x3FU));
        } else {
            append(0xF0U | (c >> 18U));
            append(0x80U | ((c >> 12U) & 0x3FU));
            append(0x80U | ((c >> 6U) & 0x3FU));
            append(0x80U | (c & 0x3FU));
        }
    }
    return result;
}

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const std::size_t length = decode(text).first;
        if (length == 0) {
            return false;
        }
        text.remove_prefix(length);
    }
    return true;
}

bool is_printable(char32_t c) noexcept {
    // Ranges of controls, format characters, separators, surrogates and private use.
    constexpr std::array<std::pair<char32_t, char32_t>, 19> kHidden{{
        {0x00, 0x1F},     {0x7F, 0xA0},     {0xAD, 0xAD},       {0x600, 0x605},      {0x61C, 0x61C},
        {0x6DD, 0x6DD},   {0x70F, 0x70F},   {0x1680, 0x1680},   {0x180E, 0x180E},    {0x2000, 0x200F},
        {0x2028, 0x202F}, {0x205F, 0x206F}, {0x3000, 0x3000},   {0xD800, 0xF8FF},    {0xFEFF, 0xFEFF},
        {0xFFF0, 0xFFFB}, {0xFFFE, 0xFFFF}, {0xE0000, 0xE0FFF}, {0xF0000, 0x10FFFF},
    }};
    return std::none_of(kHidden.begin(), kHidden.end(),
                        [c](const auto& range) { return range.first <= c && c <= range.second; });
}

}  // namespace holocron::detail
