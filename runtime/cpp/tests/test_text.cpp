#include <doctest/doctest.h>

#include <string>

#include "gpu.hpp"
#include "holocron/errors.hpp"
#include "json.hpp"
#include "json_syntax.hpp"
#include "text.hpp"
#include "unicode.hpp"

using namespace holocron::detail;
using holocron::BackendError;

TEST_CASE("strings are quoted as Python quotes them") {
    CHECK(repr("cat") == "'cat'");
    CHECK(repr("it's") == "\"it's\"");
    CHECK(repr("'\"") == R"('\'"')");
    CHECK(repr("a\\b\n\t\r") == R"('a\\b\n\t\r')");
    CHECK(repr(std::string_view("\0\x1f\x7f", 3)) == R"('\x00\x1f\x7f')");
    CHECK(repr("ünï 猫") == "'ünï 猫'");
    CHECK(repr("\xc2\xa0\xe2\x80\xa8") == R"('\xa0\u2028')");
    CHECK(repr("\xff") == R"('\udcff')");
}

TEST_CASE("long strings are shortened as Python's reprlib shortens them") {
    CHECK(shortened_repr(std::string(28, 'a')) == "'" + std::string(28, 'a') + "'");
    CHECK(shortened_repr(std::string(100, 'a')) == "'aaaaaaaaaaaa...aaaaaaaaaaaaa'");
}

TEST_CASE("numbers are written as Python writes them") {
    CHECK(repr(0.0) == "0.0");
    CHECK(repr(-0.0) == "-0.0");
    CHECK(repr(1e-12) == "1e-12");
    CHECK(repr(0.1) == "0.1");
    CHECK(repr(1e15) == "1000000000000000.0");
    CHECK(repr(1e16) == "1e+16");
    CHECK(repr(0.0001) == "0.0001");
    CHECK(repr(0.00001) == "1e-05");
    CHECK(repr(1.0 / 0.0) == "inf");
    CHECK(repr(2.5) == "2.5");
}

TEST_CASE("JSON values are shortened as Python's reprlib shortens them") {
    const auto of = [](const char* text) { return shortened(parse_json(text)); };
    CHECK(of("null") == "None");
    CHECK(of("[true, false, 1, -2, 1.5]") == "[True, False, 1, -2, 1.5]");
    CHECK(of("[1,2,3,4,5,6,7]") == "[1, 2, 3, 4, 5, 6, ...]");
    CHECK(of(R"({"b":1,"a":2})") == "{'a': 2, 'b': 1}");
    CHECK(of(R"({"a":1,"b":2,"c":3,"d":4,"e":5})") == "{'a': 1, 'b': 2, 'c': 3, 'd': 4, ...}");
    CHECK(of("[[[[[[[[]]]]]]]]") == "[[[[[[[...]]]]]]]");
    CHECK(of("123456789012345678901234567890123456789012345") == "123456789012345678...7890123456789012345");
    CHECK(of("[]") == "[]");
    CHECK(of("{}") == "{}");
}

TEST_CASE("shapes are written as Python writes tuples") {
    CHECK(tuple(holocron::Shape{}) == "()");
    CHECK(tuple(holocron::Shape{4}) == "(4,)");
    CHECK(tuple(std::vector<holocron::Dimension>{std::string("batch"), std::int64_t{3}}) == "('batch', 3)");
}

TEST_CASE("UTF-8 is told from what is not") {
    CHECK(is_utf8(""));
    CHECK(is_utf8("ünï 猫 \xf0\x9f\x90\x88"));
    CHECK_FALSE(is_utf8("\xff"));
    CHECK_FALSE(is_utf8("\xc3"));              // cut off
    CHECK_FALSE(is_utf8("\xc0\x80"));          // overlong
    CHECK_FALSE(is_utf8("\xed\xa0\x80"));      // a surrogate
    CHECK_FALSE(is_utf8("\xf4\x90\x80\x80"));  // beyond U+10FFFF
}

TEST_CASE("stray bytes and text come back from code points") {
    const std::string text = "a\xff猫\xc3";
    CHECK(to_utf8(from_utf8(text)) == text);
}

TEST_CASE("a library's error becomes one line") {
    CHECK(one_line("  a\n\tb  c \n") == "a b c");
    CHECK(from_utf8(one_line(std::string(1000, 'x'))).size() == 300);
    CHECK(one_line("") == "");
}

TEST_CASE("JSON that readers differ about is refused") {
    CHECK_THROWS_AS(static_cast<void>(parse_json(R"({"a":1,"a":1})")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("NaN")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("[Infinity]")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("\xEF\xBB\xBF{}")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json(std::string_view("{}\0{", 4))), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("{} {}")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("// no\n{}")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("1e999")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("\"\\ud800\"")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json("")), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json(std::string(100000, '['))), JsonError);
    CHECK_THROWS_AS(static_cast<void>(parse_json(std::string(1000, '[') + std::string(1000, ']'))), JsonError);
    CHECK_NOTHROW(static_cast<void>(parse_json(std::string(500, '[') + std::string(500, ']'))));
}

TEST_CASE("what is not JSON is told by its place, in characters") {
    const auto mistake = [](std::string_view text) { return json_mistake(text).value_or("none"); };
    CHECK(mistake(" {\"a\": [1, -0.5e+3, true, null, \"\\ud83d\\uDC08\\n\"], \"b\": {}}\n") == "none");
    CHECK(mistake("[1,\n  2,]") == "a syntax error in line 2, column 5");
    CHECK(mistake("{\"ä猫\": x}") == "a syntax error in line 1, column 8");
    CHECK(mistake("[\"ab\\x\"]") == "a syntax error in line 1, column 5");
    CHECK(mistake("[1.]") == "a syntax error in line 1, column 3");
    CHECK(mistake("[01]") == "a syntax error in line 1, column 3");
    CHECK(mistake("[\"\\udc00\"]") == "a syntax error in line 1, column 3");
    CHECK(mistake("{} {}") == "a syntax error in line 1, column 4");
    for (const char* text : {"", "{", "[1,", "{\"a\"", "[\"ab", "\"\\"}) {
        CHECK(mistake(text) ==
              (text == std::string("\"\\") ? "a syntax error in line 1, column 2" : "it ends too early"));
    }
    CHECK(mistake(std::string(513, '[')) == "it is nested more than 512 levels deep");
    CHECK(mistake(std::string(512, '[') + std::string(512, ']')) == "none");
}

TEST_CASE("a GPU is asked for by its number") {
    CHECK(gpu_index("", 3) == 0);
    CHECK(gpu_index("cuda", 3) == 0);
    CHECK(gpu_index("2", 3) == 2);
    CHECK(gpu_index("CUDA:1", 3) == 1);
    for (const char* wrong : {"3", "cuda:9", "gpu", "cuda:", "-1", "99999999999"}) {
        CHECK_THROWS_WITH_AS(
            static_cast<void>(gpu_index(wrong, 2)),
            ("there is no device '" + std::string(wrong) + "': expected one of cuda:0, cuda:1").c_str(), BackendError);
    }
    CHECK_THROWS_WITH_AS(static_cast<void>(gpu_index("0", 0)), "there is no NVIDIA GPU here", BackendError);
}
