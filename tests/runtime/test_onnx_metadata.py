"""The reader of ONNX metadata, against the `onnx` package and against damaged files."""

import contextlib

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BundleError
from runtime.onnx_metadata import read_metadata


def test_it_reads_what_onnx_reads(lone_onnx):
    expected = {p.key: p.value for p in onnx.load(lone_onnx).metadata_props}
    assert read_metadata(lone_onnx) == expected
    assert expected["other"] == "ünïcode"


def test_a_file_without_metadata_gives_none(tmp_path, network):
    (tmp_path / "a.onnx").write_bytes(network())
    assert read_metadata(tmp_path / "a.onnx") == {}


def test_the_order_of_fields_does_not_matter(tmp_path, network, lone_onnx):
    bare, full = network("int8.cpu"), lone_onnx.read_bytes()
    metadata = full[len(bare) :]
    assert full == bare + metadata
    (tmp_path / "a.onnx").write_bytes(metadata + bare)
    assert read_metadata(tmp_path / "a.onnx") == read_metadata(lone_onnx)


def test_weights_are_not_read(tmp_path, network, lone_onnx):
    # A graph of 3 GiB, as a hole in the file: only skipping it is quick and fits into memory.
    size = 3 * 2**30
    length, rest = bytearray(), size
    while rest:
        length.append((rest & 0x7F) | (0x80 if rest > 0x7F else 0))
        rest >>= 7
    path = tmp_path / "large.onnx"
    with path.open("wb") as f:
        f.write(b"\x08\x08\x3a" + bytes(length))
        f.seek(size, 1)
        f.write(lone_onnx.read_bytes()[len(network("int8.cpu")) :])
    assert read_metadata(path) == read_metadata(lone_onnx)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x00" * 50, b"\xff" * 50, b"\x08\x08", b"\x0b\x08", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"],
    ids=["empty", "text", "zeros", "ones", "no graph", "group", "length beyond the file"],
)
def test_what_is_not_onnx_is_refused(tmp_path, data):
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"a\.onnx is not an ONNX file, or was cut off"):
        read_metadata(tmp_path / "a.onnx")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match="cannot read"):
        read_metadata(tmp_path / "none.onnx")


def test_every_truncation_is_refused_or_reads_less(lone_onnx, tmp_path):
    data, expected = lone_onnx.read_bytes(), read_metadata(lone_onnx)
    path = tmp_path / "cut.onnx"
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with contextlib.suppress(BundleError):
            assert read_metadata(path).items() <= expected.items()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda b: b"\x08\x08\x3a\x00\x72" + b))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.onnx"
    path.write_bytes(data)
    with contextlib.suppress(BundleError):
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in read_metadata(path).items())
