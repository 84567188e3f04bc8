"""Frames of files, addresses and cameras: upright, in order, with their times; and what cannot be read says so."""

import functools
import http.server
import io
import itertools
import re
import struct
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

from runtime import ImageError, load, open_video
from runtime.video import libraries
from runtime.video.newest import newest


def until_error(frames):
    """What comes before the error, and what it says."""
    taken = []
    try:
        for frame in frames:
            taken.append(frame)  # noqa: PERF402 - what was taken is wanted in spite of the error
    except ImageError as e:
        return taken, str(e)
    raise AssertionError("there was no error")


def test_a_video_is_a_stream_of_frames(bundle, ride, library, videos, no_threads_left):
    frames = list(open_video(ride))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 12
    assert [videos.colour_of(frame) for frame in frames] == ["red", "green", "blue"] * 4
    assert not any(np.shares_memory(a, b) for a, b in itertools.pairwise(frames))
    for rgb, bgr in zip(frames, open_video(str(ride), "bgr"), strict=True):
        np.testing.assert_array_equal(rgb, bgr[..., ::-1])
    with load(bundle, "fp32", threads=1) as model:
        assert len(list(model.stream(open_video(ride), 2))) == 12
    assert no_threads_left()


@pytest.mark.parametrize("every", [1, 5, 100])
def test_frames_have_numbers_and_times(ride, library, every, videos):
    with open_video(ride, every=every) as video:
        assert (video.name, video.live) == (str(ride), False)
        assert video.fps == pytest.approx(10)
        frames = list(video.frames())
    assert [frame.number for frame in frames] == list(range(0, 12, every))
    assert [frame.time for frame in frames] == pytest.approx([n / 10 for n in range(0, 12, every)])
    assert [videos.colour_of(f.image) for f in frames] == [("red", "green", "blue")[n % 3] for n in range(0, 12, every)]


def test_frames_are_upright(tmp_path, library, videos):
    """A telephone held upright writes frames that lie on their side, and a matrix that turns them."""
    frames = [np.concatenate([videos.solid("red", 24), videos.solid("blue", 24)])] * 3
    data = bytearray(videos.write(tmp_path / "lying.mp4", frames).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 16  # behind version, times, track, duration, layers and volume
    assert struct.unpack_from(">9i", data, matrix) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)  # clockwise
    (tmp_path / "upright.mp4").write_bytes(data)
    with open_video(tmp_path / "lying.mp4") as as_it_is, open_video(tmp_path / "upright.mp4") as turned:
        lying, upright = next(as_it_is), next(turned)
    np.testing.assert_array_equal(upright, np.rot90(lying, -1))
    assert videos.colour_of(upright[:, 32:]) == "red"


def test_sizes_may_change(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda name: name == "av")
    sizes = [(48, 64), (48, 64), (32, 80), (16, 16)]
    data = io.BytesIO()
    for height, width in sizes:
        Image.fromarray(videos.solid("green", height, width)).save(data, "JPEG")
    (tmp_path / "sizes.mjpeg").write_bytes(data.getvalue())
    assert [frame.shape[:2] for frame in open_video(tmp_path / "sizes.mjpeg")] == sizes


def test_closing_ends_it(ride, library):
    with open_video(ride) as video:
        next(video)
    video.close()
    assert list(video) == []
    frames = (opened := open_video(ride)).frames()
    next(frames)
    frames.close()
    assert list(opened) == []


def test_closing_waits_for_a_frame_that_is_waited_for(opencv, stand_in, videos):
    """A capture must not be released while it is read, and a camera may take long."""
    wait = threading.Event()
    opencv.cameras[0] = stand_in.Camera(videos.colourful(1), fps=1000, wait=wait)
    video = open_video(0)
    next(video)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(until_error(video)))
    thread.start()
    time.sleep(0.1)
    video.close()
    assert opencv.alive
    wait.set()
    thread.join(10)
    assert not opencv.alive
    assert ended[0][0] == []


# What cannot be read.


def test_without_a_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda name: False)
    with pytest.raises(ImageError, match=r"ride\.mp4 needs PyAV \(pip install .*video.*or OpenCV"):
        open_video("ride.mp4")
    with pytest.raises(ImageError, match=r"the camera 0 needs OpenCV .* or PyAV"):
        open_video(0)
    with pytest.raises(ValueError, match="channels is 'grb'"):
        open_video("ride.mp4", "grb")
    with pytest.raises(ValueError, match="every is 0, expected 1 at least"):
        open_video("ride.mp4", every=0)


def test_what_is_no_video(tmp_path, library):
    (tmp_path / "no.mp4").write_bytes(b"not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("no.mp4", "empty.mp4", "gone.mp4"):
        with pytest.raises(ImageError, match=name):
            next(open_video(tmp_path / name))


def test_sound_alone_is_no_video(tmp_path, library):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        track = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(track.encode(sound))
        container.mux(track.encode())
    message = "has no video in it" if library == "av" else "cannot open"
    with pytest.raises(ImageError, match=rf"{message}|song\.mp4"):
        open_video(tmp_path / "song.mp4")


@pytest.fixture
def pyav(monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda name: name == "av")


@pytest.fixture
def long(tmp_path, videos):
    """Noise, of which a codec makes much: half of the file is half of the frames. Its index comes first."""
    noise = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(40)]
    return videos.write(tmp_path / "long.mp4", noise, options={"movflags": "faststart"})


def test_a_video_that_is_cut_off_gives_what_there_is_and_says_so(pyav, long):
    data = long.read_bytes()
    long.write_bytes(data[: len(data) // 2])
    taken, error = until_error(video := open_video(long))
    assert re.search(r"long\.mp4 is cut off: it ends after \d\.\d of the 4\.0 seconds that it announces", error)
    assert 10 < len(taken) < 30
    assert list(video) == []  # it is closed


def test_a_video_that_was_trimmed_is_not_cut_off(pyav, long):
    """Its index names frames that are not to be seen: an edit list says which are."""
    data = bytearray(long.read_bytes())
    edits = data.index(b"elst")
    (duration,) = struct.unpack_from(">I", data, edits + 12)
    struct.pack_into(">I", data, edits + 12, duration // 4)
    long.write_bytes(data)
    assert len(list(open_video(long))) == 10


def test_a_video_that_is_damaged_gives_the_rest_and_says_so(pyav, long):
    data = bytearray(long.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 2000] = bytes(2000)
    long.write_bytes(data)
    taken, error = until_error(open_video(long))
    assert re.search(r"long\.mp4 is damaged: \d of its packets could not be decoded", error)
    assert 30 < len(taken) < 40


def test_a_video_without_frames(pyav, ride):
    data = bytearray(ride.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    ride.write_bytes(data)
    with pytest.raises(ImageError, match=r"ride\.mp4 is damaged or empty: it has no frame that can be decoded"):
        list(open_video(ride))


# Addresses.


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the files of `tmp_path`; gives its address."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def test_an_address_is_read_and_its_password_not_told(pyav, server, long):
    video = open_video(f"http://user:secret@{server}/long.mp4")
    assert (video.name, video.live) == (f"http://{server}/long.mp4", False)
    assert len(list(video)) == 40
    with pytest.raises(ImageError, match=r"gone\.mp4 as a video: .*404") as e:
        open_video(f"http://user:secret@{server}/gone.mp4")
    assert "secret" not in str(e.value)


def test_an_address_that_nobody_answers(pyav, server):
    with pytest.raises(ImageError, match=r"cannot read rtsp://127.0.0.1:1/front as a video: Connection refused"):
        open_video("rtsp://user:secret@127.0.0.1:1/front")


# Cameras.


def test_a_camera_gives_frames_until_it_is_gone(opencv, stand_in, videos):
    opencv.cameras[2] = stand_in.Camera(videos.colourful(4), fps=50)
    with open_video(2) as camera:
        assert (camera.name, camera.live, camera.fps) == ("camera 2", True, 50)
        frames, error = until_error(camera.frames())
    assert error == "the camera 2 gives no more frames, after 4: it is unplugged, or has ended"
    assert [frame.number for frame in frames] == [0, 1, 2, 3]
    assert frames[0].time == 0
    assert 0 < frames[1].time < frames[3].time
    assert [videos.colour_of(frame.image) for frame in frames] == ["red", "green", "blue", "red"]


@pytest.mark.parametrize("camera", [0, 7, "/dev/video7"])
def test_a_camera_that_is_not_there(opencv, camera):
    with pytest.raises(ImageError, match=f"cannot open .*{camera}: it is not there, in use, or of no known format"):
        open_video(camera)


def test_a_device_that_is_no_camera(pyav):
    """Through Video4Linux, which finds out."""
    with pytest.raises(ImageError, match="cannot read /dev/null as a video: Inappropriate ioctl"):
        open_video("/dev/null")
    with pytest.raises(ImageError, match="cannot read the camera 9999 as a video: No such file"):
        open_video(9999)


def test_opencv_reads_cameras_where_it_is_installed_and_pyav_files(opencv, stand_in, videos, ride, monkeypatch):
    monkeypatch.setattr(libraries, "installed", lambda name: True)
    opencv.cameras[0] = stand_in.Camera(videos.colourful(1))
    camera, file = open_video(0), open_video(ride)
    assert len(opencv.alive) == 1
    camera.close()
    assert not opencv.alive
    file.close()


# The newest frame.


def test_who_is_slower_sees_the_newest(no_threads_left):
    taken, go_on = threading.Semaphore(0), threading.Semaphore(0)
    closed = []

    def camera():
        try:
            for i in range(10):
                yield i
                taken.release()  # the one before is in its place
                if i in (0, 6):
                    go_on.acquire()
        finally:
            closed.append(True)

    frames = newest(camera())
    assert next(frames) == 0
    taken.acquire()
    go_on.release()
    for _ in range(6):
        taken.acquire()
    assert next(frames) == 6  # 1 to 5 were not asked for
    go_on.release()
    for _ in range(3):
        taken.acquire()
    assert list(frames) == [9]
    assert closed == [True]
    assert no_threads_left()


def test_who_is_faster_sees_every_one():
    def camera():
        for i in range(5):
            time.sleep(0.02)
            yield i

    assert list(newest(camera())) == [0, 1, 2, 3, 4]


def test_what_the_source_raises_comes_out(no_threads_left):
    def camera():
        yield 1
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        for _ in newest(camera()):
            pass
    assert no_threads_left()


def test_closing_the_newest_ends_the_source(no_threads_left):
    closed = threading.Event()

    def camera():
        try:
            while True:
                time.sleep(0.001)
                yield 1
        finally:
            closed.set()

    frames = newest(camera())
    next(frames)
    frames.close()
    assert closed.wait(10)
    assert no_threads_left()
