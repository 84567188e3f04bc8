"""An mp4 file of annotated frames: whole or not there, whatever ends it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import ImageError, open_video
from runtime.video import libraries
from runtime.video import writer as writing
from runtime.video.writer import VideoWriter


def numbered(i, height=48, width=64):
    """A grey frame whose brightness is its number."""
    return Image.fromarray(np.full((height, width, 3), 20 * i, np.uint8))


def numbers(path):
    with open_video(path) as video:
        return [round(float(frame.mean()) / 20) for frame in video]


def test_frames_come_back_at_their_rate(tmp_path, library):
    with VideoWriter(tmp_path / "a.mp4", 30000 / 1001) as writer:
        for i in range(12):
            writer.write(numbered(i))
            assert not (tmp_path / "a.mp4").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert numbers(tmp_path / "a.mp4") == list(range(12))
    with open_video(tmp_path / "a.mp4") as video:
        # What stands in for OpenCV's writer knows whole numbers alone.
        assert video.fps == pytest.approx(30000 / 1001, rel=1e-3 if library == "av" else 2e-3)


def test_colours_stay(tmp_path, library, videos):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for frame in videos.colourful(3):
            writer.write(Image.fromarray(frame))
    assert [videos.colour_of(frame) for frame in open_video(tmp_path / "a.mp4")] == ["red", "green", "blue"]


def test_without_x264_there_is_another_codec(tmp_path, library, monkeypatch):
    monkeypatch.setattr(writing, "_can_encode", lambda av, codec: codec == "mpeg4")
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for i in range(5):
            writer.write(numbered(i))
    assert numbers(tmp_path / "a.mp4") == list(range(5))


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (1, 1), (33, 35)])
def test_odd_sizes_grow_by_a_pixel(tmp_path, library, height, width):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(numbered(5, height, width))
    (frame,) = open_video(tmp_path / "a.mp4")
    assert frame.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(frame.astype(int) - 100).max() < 12  # the last row and column as well


def test_a_frame_of_another_size_is_fitted_on_black(tmp_path, library):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for size in ((48, 64), (96, 64), (12, 16)):
            writer.write(numbered(10, *size))
    first, tall, small = open_video(tmp_path / "a.mp4")
    assert first.shape == tall.shape == small.shape == (48, 64, 3)
    assert abs(tall[:, 20:44].mean() - 200) < 10
    assert max(tall[:, :12].mean(), tall[:, 52:].mean()) < 10
    assert abs(small.mean() - 200) < 10


def test_a_frame_is_seen_until_the_next_one(tmp_path, library):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for i, place in enumerate((0, 1, 4, 4, 2, 7)):  # what is late or comes twice is seen next
            writer.write(numbered(i), place)
    if library == "cv2":
        assert numbers(tmp_path / "a.mp4") == [0, 1, 1, 1, 2, 3, 4, 5]
        return
    with open_video(tmp_path / "a.mp4") as video:
        assert [round(10 * frame.time) for frame in video.frames()] == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, ValueError])
def test_what_ends_it_early_leaves_a_whole_video(tmp_path, library, error):
    def recording():
        with VideoWriter(tmp_path / "a.mp4", 10) as writer:
            writer.write(numbered(3))
            writer.write(numbered(4))
            raise error

    with pytest.raises(error):
        recording()
    assert numbers(tmp_path / "a.mp4") == [3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_nothing_leaves_nothing_and_the_old_one_as_it_is(tmp_path, library):
    (tmp_path / "a.mp4").write_text("old")
    with VideoWriter(tmp_path / "a.mp4", 10):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(numbered(1))
        assert (tmp_path / "a.mp4").read_text() == "old"
    assert numbers(tmp_path / "a.mp4") == [1]


def test_a_folder_that_is_gone(tmp_path, library):
    writer = VideoWriter(tmp_path / "gone" / "a.mp4", 10)
    with pytest.raises(ImageError, match=r"cannot write .*a\.mp4: No such file"):
        writer.write(numbered(1))
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_codec_that_fails_leaves_nothing(tmp_path, monkeypatch, library):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(numbered(1))
        encoder = writer._encoder

        def full(pixels, place):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(encoder, "write", full)
        with pytest.raises(ImageError, match=r"cannot write .*a\.mp4: No space left on device"):
            writer.write(numbered(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, library):
    (tmp_path / "a.mp4").mkdir()
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    writer.write(numbered(1))
    with pytest.raises(ImageError, match=r"cannot write .*a\.mp4: Is a directory"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_a_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda name: False)
    with pytest.raises(ImageError, match=r"writing a\.mp4 needs PyAV \(pip install .*video.*or OpenCV"):
        VideoWriter(Path("a.mp4"), 10)
