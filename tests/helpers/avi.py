"""Videos small enough to be written by hand: AVI files of raw or JPEG frames."""

import io
import struct

import numpy as np
from PIL import Image


def _chunk(kind, data):
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _list(kind, *chunks):
    return _chunk(b"LIST", kind + b"".join(chunks))


def _raw(frame):
    """Blue, green, red, the lowest row first; each row is a multiple of four bytes."""
    height, width = frame.shape[:2]
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    rows[:, : 3 * width] = frame[::-1, :, ::-1].reshape(height, -1)
    return rows.tobytes()


def _jpeg(frame):
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "jpeg", quality=97, subsampling=0)
    return data.getvalue()


def write_avi(path, frames, codec, rate=25):
    """Write a video.

    Args:
        path: of the file
        frames: arrays `(H, W, 3)` of uint8 in RGB, all of one size
        codec: `"raw"`, from which the same pixels are read, or `"mjpg"`, from which similar ones are
        rate: frames a second
    """
    fourcc, kind, encode = {"raw": (b"\0\0\0\0", b"00db", _raw), "mjpg": (b"MJPG", b"00dc", _jpeg)}[codec]
    height, width = frames[0].shape[:2]
    images = [_chunk(kind, encode(frame)) for frame in frames]
    largest, count = max(map(len, images)), len(images)
    has_index, is_key_frame = 0x10, 0x10
    header = struct.pack(
        "<14I", 10**6 // rate, largest * rate, 0, has_index, count, 0, 1, largest, width, height, 0, 0, 0, 0
    )
    stream = struct.pack(
        "<4s4sIHHIIIIIIII4H", b"vids", fourcc, 0, 0, 0, 0, 1, rate, 0, count, largest, 10_000, 0, 0, 0, width, height
    )
    picture = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, fourcc, largest, 0, 0, 0, 0)
    index, offset = b"", 4
    for image in images:
        size = struct.unpack("<I", image[4:8])[0]
        index += struct.pack("<4sIII", kind, is_key_frame, offset, size)
        offset += len(image)
    streams = _list(b"strl", _chunk(b"strh", stream), _chunk(b"strf", picture))
    body = _list(b"hdrl", _chunk(b"avih", header), streams) + _list(b"movi", *images) + _chunk(b"idx1", index)
    path.write_bytes(_chunk(b"RIFF", b"AVI " + body))
