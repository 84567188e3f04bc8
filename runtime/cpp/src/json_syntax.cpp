#include "json_syntax.hpp"

#include <algorithm>

namespace holocron::detail {

namespace {

constexpr std::string_view kTooEarly = "it ends too early";

// What may come next, each by its first character; v stands for a number, true, false or null.
constexpr std::string_view kValue = "v\"[{";
constexpr std::string_view kValueOrEnd = "v\"[{]";
constexpr std::string_view kKey = "\"";
constexpr std::string_view kKeyOrEnd = "\"}";
constexpr std::string_view kColon = ":";
constexpr std::string_view kEnd{};

bool is_one_of(char c, std::string_view characters) { return characters.find(c) != std::string_view::npos; }

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string place(std::string_view text, std::size_t at) {
    const auto before = text.substr(0, at);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const auto begin = before.rfind('\n') + 1;  // npos + 1 is 0
    // Characters, not bytes: those behind the first byte of one do not count.
    const auto column = std::count_if(before.begin() + static_cast<std::ptrdiff_t>(begin), before.end(),
                                      [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }) +
                        1;
    return "a syntax error in line " + std::to_string(line) + ", column " + std::to_string(column);
}

/// A walk over the text. Its methods go on as far as the text is what they look for.
class Scanner {
 public:
    explicit Scanner(std::string_view text) : text_(text) {}

    std::optional<std::string> mistake() {
        std::string inside;  // the brackets that are open
        std::string_view expected = kValue;
        for (;;) {
            while (!at_end() && is_one_of(here(), " \t\n\r")) {
                ++at_;
            }
            if (at_end()) {
                return expected == kEnd ? std::nullopt : std::optional<std::string>(kTooEarly);
            }
            const char kind = is_one_of(here(), "\"[]{}:,") ? here() : 'v';
            if (!is_one_of(kind, expected)) {
                return place(text_, at_);
            }
            if (is_one_of(kind, "[{")) {
                if (inside.size() == kMaxJsonDepth) {
                    return "it is nested more than " + std::to_string(kMaxJsonDepth) + " levels deep";
                }
                inside += kind;
                ++at_;
                expected = kind == '[' ? kValueOrEnd : kKeyOrEnd;
                continue;
            }
            if (is_one_of(kind, ":,")) {
                ++at_;
                expected = kind == ':' || inside.back() == '[' ? kValue : kKey;
                continue;
            }
            const bool is_key = kind == '"' && !is_one_of('v', expected);
            if (kind == '"') {
                ++at_;
                pass_characters();
                if (at_end()) {
                    return std::string(kTooEarly);
                }
                if (here() != '"') {
                    return place(text_, at_);
                }
                ++at_;
            } else if (kind == 'v') {
                if (!pass_scalar()) {
                    return place(text_, at_);
                }
            } else {
                inside.pop_back();
                ++at_;
            }
            expected = is_key ? kColon : inside.empty() ? kEnd : inside.back() == '[' ? ",]" : ",}";
        }
    }

 private:
    [[nodiscard]] bool at_end() const noexcept { return at_ == text_.size(); }
    [[nodiscard]] char here() const { return text_[at_]; }

    bool pass(std::string_view word) {
        const bool found = text_.substr(at_, word.size()) == word;
        at_ += found ? word.size() : 0;
        return found;
    }

    bool pass_one_of(std::string_view characters) {
        const bool found = !at_end() && is_one_of(here(), characters);
        at_ += found ? 1 : 0;
        return found;
    }

    bool pass_digits() {
        const std::size_t before = at_;
        while (!at_end() && is_digit(here())) {
            ++at_;
        }
        return at_ != before;
    }

    /// Up to the closing quote, or to what is no character of a string.
    void pass_characters() {
        while (!at_end() && here() != '"' && static_cast<unsigned char>(here()) >= 0x20) {
            if (here() != '\\') {
                ++at_;
            } else if (!pass_escape()) {
                return;
            }
        }
    }

    bool pass_escape() {
        const std::size_t before = at_++;
        bool found = pass_one_of("\"\\/bfnrt");
        if (!found && pass("u")) {
            const std::optional<unsigned> unit = four_digits();
            found = unit && (*unit < 0xD800 || *unit > 0xDFFF);
            if (unit && *unit >= 0xD800 && *unit < 0xDC00 && pass("\\u")) {  // the first half of a pair
                const std::optional<unsigned> second = four_digits();
                found = second && *second >= 0xDC00 && *second <= 0xDFFF;
            }
        }
        at_ = found ? at_ : before;
        return found;
    }

    std::optional<unsigned> four_digits() {
        unsigned value = 0;
        for (int i = 0; i < 4; ++i) {
            constexpr std::string_view digits = "0123456789abcdefABCDEF";
            const std::size_t digit = at_end() ? std::string_view::npos : digits.find(here());
            if (digit == std::string_view::npos) {
                return std::nullopt;
            }
            ++at_;
            value = value * 16 + static_cast<unsigned>(digit < 16 ? digit : digit - 6);
        }
        return value;
    }

    bool pass_scalar() {
        if (pass("true") || pass("false") || pass("null")) {
            return true;
        }
        const std::size_t before = at_;
        pass("-");
        if (!pass("0") && !pass_digits()) {
            at_ = before;
            return false;
        }
        pass_fraction();
        pass_exponent();
        return true;
    }

    void pass_fraction() {
        const std::size_t before = at_;
        if (pass(".") && !pass_digits()) {
            at_ = before;
        }
    }

    void pass_exponent() {
        const std::size_t before = at_;
        if (pass_one_of("eE")) {
            pass_one_of("+-");
            if (!pass_digits()) {
                at_ = before;
            }
        }
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

}  // namespace

std::optional<std::string> json_mistake(std::string_view text) { return Scanner(text).mistake(); }

}  // namespace holocron::detail
