"""Thousands of damaged manifests: the C++ runtime refuses what the Python runtime refuses, in the same sentences."""

import copy
import json
import math
import random

import pytest

import runtime
from runtime.errors import BackendError, BundleError, HolocronError

KINDS = {BundleError: "bundle", BackendError: "backend"}
INT8 = {"file": "b.onnx", "kind": "onnx", "precision": "int8", "scheme": "cpu", "size": 0, "sha256": "0" * 64}
ENGINE = {
    "library": "tensorrt", "version": "10.3.0", "compute_capability": "8.7", "max_batch": 1,
    "hardware_compatibility": "none", "version_compatible": False, "stripped": True, "dla_core": 0,
    "optimization_level": 3, "workspace_mib": 512,
}  # fmt: skip
VERIFICATION = {
    "reference": "pytorch", "images": 3, "relative_error": 1e-6, "cosine": 1.0, "top1_agreement": 1.0, "accuracy": 0.5,
    "reference_accuracy": None, "labelled_images": 3, "backend": "onnxruntime",
}  # fmt: skip
MANIFEST = {
    "schema_version": 1,
    "name": "tiny",
    "task": "detection",
    "labels": ["cat", "dög"],
    "inputs": [{"name": "frame", "dtype": "uint8", "shape": ["batch", 20, 30, 3]}],
    "outputs": [{"name": "boxes", "dtype": "float32", "shape": ["batch", 9, 4]}],
    "preprocessing": {
        "size": [16, 16], "mean": [0, 0.5, 0.25], "std": [1, 1, 0.5], "resize": "pad", "pad_mode": "edge",
        "interpolation": "bicubic",
    },
    "artefacts": [
        {**INT8, "file": "a.onnx", "precision": "fp32", "scheme": None, "engine": None, "verification": VERIFICATION},
        INT8,
        {**INT8, "file": "c.engine", "kind": "engine", "scheme": "trt", "engine": ENGINE},
    ],
    "provenance": {"versions": {"torch": "2.0"}, "seed": [1, None]},
    "frame": {"channels": "bgr", "size": [20, 30], "fixed": True},
    "post_processing": {
        "kind": "detections", "coordinates": "frame", "score_threshold": 0.2, "iou_threshold": 0.5, "max_detections": 9,
        "candidates": 9, "steps": 4, "top_k": None, "with_probabilities": False,
    },
}  # fmt: skip
WRONG = [
    None, True, False, 0, 1, -1, 7, 2**16 + 1, 2**31, 2**53 + 1, 2**63, -(2**64), 10**30, -(10**45), 10**400, -0.0, 0.5,
    1.0,
    1e-320, 1e16, -2.5e300, math.nan, -math.inf, "", "x", ".", "..", "/a", "a/../b", "a\\b", "a:b", "a\0b", "it's",
    "\"'\\",
    "\n\r\t\x01\x7f\x9f\u200b\u2028\ufeff\U0001f408", "é" * 31, "ab" * 40, "\x02" * 9, "F" * 64, [], [1], [[]],
    ["x"] * 9,
    [1, 2, 3], [0.5, -1e-13, 1e30], [[[[[[[[8]]]]]]]], {}, {"x": 1}, {"kind": "class_map"},
    {f"k{i}" * (4 * i + 1): {"z": i, "a": [i] * 8} for i in range(6)},
]  # fmt: skip


def places(value, path=()):
    """The path of every value in decoded JSON but of the whole."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def changed(path, value):
    """The manifest with another value at a place; without it for `...`."""
    data = copy.deepcopy(MANIFEST)
    inside = data
    for key in path[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return data


@pytest.fixture
def differences(library, tmp_path):
    """What the two runtimes say of manifests, given as bytes, where it is not the same.

    None of the files of the bundle is there, so that nothing is opened, and every manifest is refused.
    """
    path = tmp_path / "manifest.json"

    def compare(manifests):
        different, sentences = [], set()
        for data in manifests:
            path.write_bytes(data)
            with pytest.raises(HolocronError) as wanted:
                runtime.load(tmp_path, "fp32", "openvino", 1)
            with pytest.raises(library.Error) as found:
                library.load(tmp_path, "fp32")
            sentences.add(str(wanted.value))
            if (found.value.status, str(found.value)) != (KINDS[type(wanted.value)], str(wanted.value)):
                different.append((data[:200], str(found.value), str(wanted.value)))
        return different, sentences

    return compare


def test_undamaged_it_is_read(differences):
    different, (sentence,) = differences([json.dumps(MANIFEST).encode()])
    assert different == []
    assert sentence.endswith("a.onnx, which the manifest names: No such file or directory")


CHANGES = [(path, value) for path in places(MANIFEST) for value in (..., *WRONG)]


@pytest.mark.parametrize("count", [1000, pytest.param(len(CHANGES), marks=pytest.mark.slow)])
def test_each_value_missing_or_wrong(differences, count):
    some = [change for change in CHANGES if change[1] is ...] + random.Random(3).sample(CHANGES, count)
    different, sentences = differences(json.dumps(changed(*change)).encode() for change in some)
    assert different == []
    assert len(sentences) > count / 2


def test_each_object_with_a_key_too_many_or_twice(differences):
    def edited(path, keys):
        data = json.dumps(changed(path, "HERE") if path else "HERE")
        inside = MANIFEST
        for key in path:
            inside = inside[key]
        text = json.dumps(inside)
        return data.replace('"HERE"', text[:-1] + ("" if text == "{}" else ", ") + keys + "}").encode()

    objects = [p for p in ((), *places(MANIFEST)) if isinstance(_at(p), dict)]
    keys = [
        '"zebra": 0',
        '"": 0',
        '"Name": 0, "zebra": 1',
        '"\\u00fc\\n": [1]',
        '"a": 1, "a": 1',
        '"a": 1, "\\u0061": 1',
        f'"{"k" * 99}": 2',
    ]
    different, _ = differences(edited(path, key) for path in objects for key in keys)
    assert different == []


def _at(path):
    inside = MANIFEST
    for key in path:
        inside = inside[key]
    return inside


def test_cut_off_anywhere(differences):
    text = json.dumps(MANIFEST, ensure_ascii=False).encode()
    different, sentences = differences(text[:length] for length in range(len(text)))
    assert different == []
    assert any(sentence.endswith("(it ends too early): export the model again") for sentence in sentences)


SYNTAX = [
    b"", b" \n", b"{", b"}", b"[", b"]", b'"', b"null", b"true", b"1", b'"a"', b"[]", b"{}", b"{} {}", b"{}x", b"{}\0",
    b"\0{}", b"[1\0]",
    b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\xff", b'{"a": "\xff"}', b'{"\xc3', b'["\xed\xa0\x80"]', b'["\xc0\x80"]',
    b'["\xf4\x90\x80\x80"]',
    b"{'a': 1}", b"{a: 1}", b'{"a": 1,}', b"[1,]", b"[,1]", b"[1 2]", b'{"a" 1}', b'{"a": }', b'{"a", 1}', b'{"a":: 1}',
    b'{,}', b"[}", b"{]",
    b'{"a": [1}', b"// x\n{}", b"/* x */{}", b"# x\n{}", b'["\n"]', b'["\t"]', b'["\x1f"]', b'["\x7f"]', b'["\\x41"]',
    b'["\\u12"]', b'["\\u12g4"]',
    b'["\\u+123"]', b'["\\u 123"]', b'["\\"]', b'["\\', b'["\\u', b'["\\ud800"]', b'["\\udc00"]', b'["\\ud800\\u0041"]',
    b'["\\ud800\\ud800"]',
    b'["\\uD83D\\uDC08"]', b'["\\uD83D\\uDC0"]', b'{"\\udfff": 1}', b"[NaN]", b"[Infinity]", b"[-Infinity]", b"[nan]",
    b"[tru]", b"[True]", b"[nulll]",
    b"[01]", b"[-]", b"[--1]", b"[+1]", b"[1.]", b"[.5]", b"[1e]", b"[1e+]", b"[1E-5]", b"[1.5e3.2]", b"[0x10]",
    b"[1_000]", b"[-0]", b"[1e999]",
    b"[-1e999]", b"[" + b"9" * 308 + b"]", b"[" + b"9" * 309 + b"]", b"[" + b"1" * 10_000 + b"]",
    b"[" + b"1" * 10_000 + b", x]",
    b'{"a": 1, "a": 2, }', b'{"a": 1, "a": 1e999}', b'{"a": 1e999, "a": 1}', b'[{"a": 1, "a": 2}, [', b"\r\n{\r\n x",
    b"{\r x", b"\xc3\xa4", '{"ä🐈": x}'.encode(),
    b"\x0b{}", b"\xc2\xa0{}", b"[" * 512 + b"]" * 512, b"[" * 513 + b"]" * 513, b"[" * 100_000, b'{"a":' * 100_000,
    b"[" * 600 + b"x", b"[1, " * 511 + b"x",
]  # fmt: skip


def test_text_that_is_hardly_json(differences):
    different, _ = differences(SYNTAX)
    assert different == []


def test_bytes_mutated_at_random(differences):
    generator = random.Random(7)
    pieces = [b" ", b"\n", b"\0", b"\xc3", *b'" \\ { } [ ] , : - 0 1e400 null \\ud83d \\u00e9'.split()]
    text = json.dumps(MANIFEST, indent=1, ensure_ascii=False).encode()

    def mutated():
        data = bytearray(text)
        for _ in range(generator.randint(1, 3)):
            at, length = generator.randrange(len(data)), generator.choice((0, 1, 1, 2, 30))
            other = generator.randrange(len(data))
            put = generator.choice(
                (b"", generator.choice(pieces), bytes([generator.randrange(256)]), bytes(data[other : other + 20]))
            )
            data[at : at + length] = put
        return bytes(data)

    different, sentences = differences(mutated() for _ in range(1000))
    assert different == []
    assert len(sentences) > 300
