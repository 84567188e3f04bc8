"""Reading the metadata of an ONNX file without the `onnx` package, and without reading the network.

An ONNX file is one protocol-buffers message, `ModelProto`: a sequence of fields, each a key (number and wire type) and
a value that is either of fixed size or says its length. Only `metadata_props`, field 14, is read; the rest, the weights
above all, is skipped by seeking.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from .errors import BundleError

_METADATA_PROPS = 14
_IR_VERSION = 1
_GRAPH = 7
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_ENTRY_BYTES = 16 * 2**20


class _NotProtobufError(Exception):
    pass


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file.

    Args:
        path: the file

    Returns:
        its keys and values; empty if it has none

    Raises:
        BundleError: if it cannot be read or is not an ONNX file
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e
    except _NotProtobufError as e:
        raise BundleError(f"{path} is not an ONNX file, or was cut off: {e}") from e


def _read(file: BinaryIO, size: int) -> dict[str, str]:
    metadata: dict[str, str] = {}
    seen = set()
    while file.tell() < size:
        field, wire = _key(file)
        seen.add(field)
        if field == _METADATA_PROPS and wire == _BYTES:
            key, value = _entry(_bytes(file, size))
            metadata[key] = value
        else:
            _skip(file, wire, size)
    if not {_IR_VERSION, _GRAPH} <= seen:
        raise _NotProtobufError("it has no graph")
    return metadata


def _entry(data: bytes) -> tuple[str, str]:
    file, found = io.BytesIO(data), {1: b"", 2: b""}
    while file.tell() < len(data):
        field, wire = _key(file)
        if field in found and wire == _BYTES:
            found[field] = _bytes(file, len(data))
        else:
            _skip(file, wire, len(data))
    try:
        return found[1].decode(), found[2].decode()
    except UnicodeDecodeError:
        raise _NotProtobufError("its metadata is not UTF-8 text") from None


def _key(file: BinaryIO) -> tuple[int, int]:
    key = _varint(file)
    if key >> 3 == 0:
        raise _NotProtobufError(f"there is a field with the number 0 before byte {file.tell()}")
    return key >> 3, key & 7


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise _NotProtobufError("it ends inside a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < (0x80 if shift < 63 else 2):  # the tenth byte has one bit
            return value
    raise _NotProtobufError(f"there is a number of more than 64 bits before byte {file.tell()}")


def _bytes(file: BinaryIO, size: int) -> bytes:
    length = _varint(file)
    if length > size - file.tell():
        raise _NotProtobufError("it ends inside a field")
    if length > _MAX_ENTRY_BYTES:
        raise _NotProtobufError(f"its metadata has an entry of {length} bytes")
    return file.read(length)


def _skip(file: BinaryIO, wire: int, size: int) -> None:
    if wire == _VARINT:
        _varint(file)
        return
    if wire not in (_FIXED64, _BYTES, _FIXED32):
        raise _NotProtobufError(f"there is a field of the unknown type {wire} before byte {file.tell()}")
    length = {_FIXED64: 8, _FIXED32: 4}.get(wire)
    if length is None:
        length = _varint(file)
    if length > size - file.tell():
        raise _NotProtobufError("it ends inside a field")
    file.seek(length, 1)
