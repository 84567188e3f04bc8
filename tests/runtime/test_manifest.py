"""The manifest: what it accepts, and the attacks that it survives."""

import contextlib
import copy
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BundleError
from runtime.manifest import EngineInfo, Manifest, Verification, artefact_path, read_manifest


def test_written_and_read_again_it_is_equal(manifest_of):
    manifest = manifest_of(provenance={"seed": 1, "versions": {"torch": "2.9"}})
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_full_manifest_is_equal_after_a_round_trip(bundle):
    manifest = read_manifest(bundle)
    data = json.loads(manifest.to_json())
    verification = Verification("pytorch", 10, 1e-6, 0.999, 1.0, accuracy=0.97, labelled_images=10)
    data["artefacts"][0]["verification"] = vars(verification)
    data["artefacts"][1] |= {
        "kind": "engine",
        "engine": {"library": "tensorrt", "version": "10.3", "compute_capability": "8.7", "max_batch": 8},
    }
    again = Manifest.from_json(json.dumps(data))
    assert again.artefacts[0].verification == verification
    assert again.artefacts[1].engine == EngineInfo("tensorrt", "10.3", "8.7", 8)
    assert [a.variant for a in again.artefacts] == ["fp32", "int8.cpu", "int8.trt"]
    assert Manifest.from_json(again.to_json()) == again


@pytest.mark.parametrize("version", [0, 2, 1.0, "1", None, True, [], "x" * 10**6])
def test_an_unknown_version_is_refused_with_what_to_do(manifest_of, version):
    data = json.loads(manifest_of().to_json()) | {"schema_version": version}
    with pytest.raises(BundleError, match="update holocron-edge, or export the model again") as e:
        Manifest.from_json(json.dumps(data))
    assert len(str(e.value)) < 300


def change(path, value):
    def apply(data):
        *parents, last = path
        for key in parents:
            data = data[key]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return apply


DIGEST = "0" * 64
WRONG = {
    "a missing key": (("labels",), ...),
    "an unknown key": (("colour",), "red"),
    "an unknown key below": (("preprocessing", "gamma"), 1),
    "labels of numbers": (("labels",), [1, 2]),
    "labels that are text": (("labels",), "cat"),
    "a label that is half a surrogate": (("labels",), ["\ud800"]),
    "an unknown task": (("task",), "poetry"),
    "no inputs": (("inputs",), []),
    "an unknown dtype": (("inputs", 0, "dtype"), "float128"),
    "a dimension of 0": (("inputs", 0, "shape"), [0]),
    "a negative dimension": (("inputs", 0, "shape"), [-1]),
    "a dimension that is true": (("inputs", 0, "shape"), [True]),
    "one size": (("preprocessing", "size"), [224]),
    "a size of 0": (("preprocessing", "size"), [0, 224]),
    "an enormous size": (("preprocessing", "size"), [10**9, 10**9]),
    "a size with a fraction": (("preprocessing", "size"), [224.5, 224]),
    "a mean of 400 digits": (("preprocessing", "mean"), [10**400, 0, 0]),
    "a mean beyond float32": (("preprocessing", "mean"), [1e39, 0, 0]),
    "a std of 0": (("preprocessing", "std"), [0, 1, 1]),
    "a std that is 0 in float32": (("preprocessing", "std"), [1e-60, 1, 1]),
    "a negative std": (("preprocessing", "std"), [-1, 1, 1]),
    "an unknown filter": (("preprocessing", "interpolation"), "sinc"),
    "a filter in a list": (("preprocessing", "interpolation"), ["bilinear"]),
    "a path that is absolute": (("artefacts", 0, "file"), "/etc/passwd"),
    "a path that leaves": (("artefacts", 0, "file"), "../model.onnx"),
    "a path that leaves further down": (("artefacts", 0, "file"), "a/../../model.onnx"),
    "a Windows path": (("artefacts", 0, "file"), "..\\model.onnx"),
    "a drive": (("artefacts", 0, "file"), "C:model.onnx"),
    "an empty path": (("artefacts", 0, "file"), ""),
    "the folder itself": (("artefacts", 0, "file"), "."),
    "a path with NUL": (("artefacts", 0, "file"), "a\0b"),
    "the same file twice": (("artefacts", 0, "file"), "model.int8.cpu.onnx"),
    "a digest in capitals": (("artefacts", 0, "sha256"), "A" * 64),
    "a digest with a newline": (("artefacts", 0, "sha256"), DIGEST + "\n"),
    "a negative length": (("artefacts", 0, "size"), -1),
    "a scheme for fp32": (("artefacts", 0, "scheme"), "cpu"),
    "int8 without a scheme": (("artefacts", 1, "scheme"), None),
    "an engine without its facts": (("artefacts", 0, "kind"), "engine"),
    "provenance that is a list": (("provenance",), []),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_file(own_bundle, edit_manifest, case):
    edit_manifest(own_bundle, change(*WRONG[case]))
    with pytest.raises(BundleError) as e:
        read_manifest(own_bundle)
    assert "manifest.json" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema_version": NaN}',
        '{"schema_version": 1, "schema_version": 1}',
        '{"schema_version": ' + "1" * 10_000 + "}",
        "\ufeff{}",
    ],
    ids=["empty", "cut", "list", "null", "nested", "nested objects", "NaN", "duplicate", "digits", "byte order mark"],
)
def test_what_is_not_a_manifest_is_refused(text):
    with pytest.raises(BundleError):
        Manifest.from_json(text)


def test_every_truncation_is_refused(manifest_of):
    text = manifest_of().to_json().rstrip()
    for end in range(len(text)):
        with pytest.raises(BundleError):
            Manifest.from_json(text[:end])


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_huge_manifest_is_not_read(own_bundle):
    with (own_bundle / "manifest.json").open("r+b") as f:
        f.truncate(17 * 2**20)  # sparse
    with pytest.raises(BundleError, match="larger than 16 MiB"):
        read_manifest(own_bundle)


def test_a_manifest_that_is_not_text_is_refused(own_bundle):
    (own_bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot read"):
        read_manifest(own_bundle)


def test_a_pipe_in_the_place_of_the_manifest_does_not_block(own_bundle):
    (own_bundle / "manifest.json").unlink()
    os.mkfifo(own_bundle / "manifest.json")
    with pytest.raises(BundleError, match="is not a file"):
        read_manifest(own_bundle)


def test_an_artefact_is_found(own_bundle):
    artefact = read_manifest(own_bundle).artefacts[0]
    assert artefact_path(own_bundle, artefact) == (own_bundle / "model.onnx").resolve()


def test_an_edited_artefact_is_refused(own_bundle):
    artefact = read_manifest(own_bundle).artefacts[0]
    file = own_bundle / artefact.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        artefact_path(own_bundle, artefact)
    assert artefact_path(own_bundle, artefact, check_hash=False) == file.resolve()


def test_a_truncated_artefact_is_refused(own_bundle):
    artefact = read_manifest(own_bundle).artefacts[0]
    with (own_bundle / artefact.file).open("r+b") as f:
        f.truncate(100)
    with pytest.raises(BundleError, match=r"has 100 bytes where the manifest says \d+"):
        artefact_path(own_bundle, artefact)


@pytest.mark.parametrize("kind", ["missing", "link out", "link to nothing", "loop", "folder", "pipe"])
def test_an_artefact_that_is_not_a_file_of_the_bundle_is_refused(own_bundle, tmp_path, kind):
    artefact = read_manifest(own_bundle).artefacts[0]
    file = own_bundle / artefact.file
    outside = tmp_path / "outside.onnx"
    file.rename(outside)
    if kind == "link out":
        file.symlink_to(outside)
    elif kind == "link to nothing":
        file.symlink_to(tmp_path / "nothing")
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    with pytest.raises(BundleError):
        artefact_path(own_bundle, artefact)


def test_a_link_to_the_bundle_and_one_inside_it_are_followed(own_bundle, tmp_path):
    artefact = read_manifest(own_bundle).artefacts[0]
    (own_bundle / "blobs").mkdir()
    (own_bundle / artefact.file).rename(own_bundle / "blobs/x")
    (own_bundle / artefact.file).symlink_to("blobs/x")
    (tmp_path / "link").symlink_to(own_bundle)
    assert artefact_path(tmp_path / "link", artefact) == (own_bundle / "blobs/x").resolve()


VALID = {
    "schema_version": 1,
    "name": "tiny",
    "task": "classification",
    "labels": ["a", "b"],
    "inputs": [{"name": "input", "dtype": "float32", "shape": ["batch", 3, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
    "preprocessing": {"size": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1], "resize": "pad", "pad_mode": "edge"},
    "artefacts": [
        {"file": "a.onnx", "kind": "onnx", "precision": "int8", "scheme": "cpu", "size": 3, "sha256": DIGEST},
        {
            "file": "a.engine",
            "kind": "engine",
            "precision": "fp16",
            "size": 3,
            "sha256": DIGEST,
            "engine": {"library": "tensorrt", "version": "10.3", "compute_capability": "8.7", "max_batch": 8},
        },
    ],
    "provenance": {"seed": 0},
}


def places(value, path=()):
    """Every place of a JSON value, as the keys that lead to it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([p for p in places(VALID) if p]), json_values), min_size=1, max_size=3))
def test_a_mutated_manifest_is_read_or_refused(mutations):
    data = copy.deepcopy(VALID)
    for path, value in mutations:
        target = data
        try:
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
        except (TypeError, KeyError, IndexError):
            continue  # an earlier mutation took this place away
    try:
        manifest = Manifest.from_json(json.dumps(data))
    except BundleError:
        return
    assert Manifest.from_json(manifest.to_json()) == manifest


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_a_manifest_with_other_bytes_is_read_or_refused(tmp_path_factory, place, data):
    folder = tmp_path_factory.mktemp("fuzz")
    text = bytearray(json.dumps(VALID).encode())
    place %= len(text)
    text[place : place + len(data)] = data
    (folder / "manifest.json").write_bytes(text)
    with contextlib.suppress(BundleError):
        assert isinstance(read_manifest(folder), Manifest)
