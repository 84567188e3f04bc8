"""JSON as bundles may have it, and what is said of anything else."""

import json

import pytest

from runtime.json_syntax import JsonError, parse_json

TOO_EARLY = "it ends too early"
MISTAKES = {
    "": TOO_EARLY,
    " \n": TOO_EARLY,
    "{": TOO_EARLY,
    '{"a"': TOO_EARLY,
    "[1,": TOO_EARLY,
    '["ab': TOO_EARLY,
    "[1,\n  2,]": "a syntax error in line 2, column 5",
    "{'a': 1}": "a syntax error in line 1, column 2",
    '{"a" 1}': "a syntax error in line 1, column 6",
    '{"a": 1,}': "a syntax error in line 1, column 9",
    "{} {}": "a syntax error in line 1, column 4",
    "[1 2]": "a syntax error in line 1, column 4",
    "[01]": "a syntax error in line 1, column 3",
    "[1.]": "a syntax error in line 1, column 3",
    "[.5]": "a syntax error in line 1, column 2",
    "[+1]": "a syntax error in line 1, column 2",
    "[NaN]": "a syntax error in line 1, column 2",
    "[-Infinity]": "a syntax error in line 1, column 2",
    "[True]": "a syntax error in line 1, column 2",
    "// x": "a syntax error in line 1, column 1",
    "\ufeff{}": "a syntax error in line 1, column 1",
    "{}\0": "a syntax error in line 1, column 3",
    '["\n"]': "a syntax error in line 1, column 3",
    '["ä\\x"]': "a syntax error in line 1, column 4",
    '["\\ud800"]': "a syntax error in line 1, column 3",
    '["\\ud800\\u0041"]': "a syntax error in line 1, column 3",
    '["\ud800"]': "a syntax error in line 1, column 3",
    '{"a": 1, "\\u0061": 2}': "an object has the same key twice",
    "[1e999]": "a number is too large",
    "[" + "9" * 309 + "]": "a number is too large",
    "[" + "1" * 100_000 + "]": "a number is too large",
    "[" * 513: "it is nested more than 512 levels deep",
    '{"a":' * 100_000: "it is nested more than 512 levels deep",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: repr(text[:20]))
def test_what_is_not_json_is_told_by_its_place(text):
    with pytest.raises(JsonError) as error:
        parse_json(text)
    assert str(error.value) == MISTAKES[text]


@pytest.mark.parametrize(
    "text",
    [
        "null", "true", " false ", "0", "-0", "-0.5e+3", "1E-400", "[]", "{}", "[[], {}]",
        '"\\ud83d\\uDC08 \\u00e9\\n\\/"',
        '{"a": [1, 2.5, null], "": {"a": 1}}', "\r\n\t [1 , 2 ]\n", '"\u2028\U0001f408"', "[" * 400 + "]" * 400,
        "9" * 308,
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_what_is_json_is_read_as_the_standard_library_reads_it(text):
    assert parse_json(text) == json.loads(text)
