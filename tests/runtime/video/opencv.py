"""A stand-in for OpenCV's video functions, over PyAV: what `runtime` uses of them, with their rules enforced.

Of the real ones: a capture that cannot be opened says so and gives nothing; frames are BGR; what a writer cannot take
it drops without a word; both are to be released, once, and not used afterwards.
"""

import time
from pathlib import Path

import av
import numpy as np

CAP_PROP_POS_MSEC, CAP_PROP_FPS = 0, 5


class Camera:
    """What stands behind a number: frames in RGB, given at a rate, and then an end, a wait, or from the first again."""

    def __init__(self, frames, fps=30.0, endless=False, wait=None):
        self.frames, self.fps, self.endless, self.wait = frames, fps, endless, wait
        self.taken = 0

    def __iter__(self):
        start = time.monotonic()
        while self.endless or self.taken < len(self.frames):
            time.sleep(max(0.0, start + self.taken / self.fps - time.monotonic()))
            frame = self.frames[self.taken % len(self.frames)]
            self.taken += 1
            yield frame[..., ::-1].copy(), 0.0
        if self.wait is not None:
            self.wait.wait()


class OpenCV:
    """In the place of the module. `cameras` are those plugged in, `alive` what is not released, `faults` what broke a
    rule.
    """

    CAP_PROP_POS_MSEC, CAP_PROP_FPS = CAP_PROP_POS_MSEC, CAP_PROP_FPS

    def __init__(self, cameras=None):
        self.cameras, self.alive, self.faults = cameras or {}, set(), []

    def VideoCapture(self, source):
        return _Capture(self, source)

    def VideoWriter(self, path, fourcc, fps, size):
        return _Writer(self, path, fourcc, fps, size)

    @staticmethod
    def VideoWriter_fourcc(*letters):
        return "".join(letters)


class _Handle:
    def __init__(self, owner):
        self.owner, self.released = owner, False
        owner.alive.add(self)

    def check(self, call):
        if self.released:
            self.owner.faults.append(f"{call} after release")

    def forget(self):
        self.released = True
        self.owner.alive.discard(self)


class _Capture(_Handle):
    def __init__(self, owner, source):
        super().__init__(owner)
        self.container, self.frames, self.fps, self.current = None, None, 0.0, None
        if isinstance(source, int):
            if source in owner.cameras:
                self.frames, self.fps = iter(owner.cameras[source]), owner.cameras[source].fps
            return
        try:
            self.container = av.open(source)
            stream = self.container.streams.video[0]
        except (av.error.FFmpegError, OSError, IndexError):
            return
        self.fps, self.frames = float(stream.average_rate or 0), self._decoded()

    def _decoded(self):
        try:
            for frame in self.container.decode(video=0):
                turned = np.rot90(frame.to_ndarray(format="bgr24"), frame.rotation // 90)
                yield np.ascontiguousarray(turned), 1000 * (frame.time or 0)
        except av.error.InvalidDataError:
            return

    def isOpened(self):
        return self.frames is not None

    def get(self, what):
        self.check("get")
        return self.fps if what == CAP_PROP_FPS else self.current[1]

    def grab(self):
        self.check("grab")
        self.current = None if self.frames is None else next(self.frames, None)
        return self.current is not None

    def retrieve(self):
        self.check("retrieve")
        return self.current is not None, None if self.current is None else self.current[0].copy()

    def release(self):
        self.forget()
        if self.container is not None:
            self.container.close()


class _Writer(_Handle):
    def __init__(self, owner, path, fourcc, fps, size):
        super().__init__(owner)
        self.size, self.container = size, None
        if fourcc == "mp4v" and fps > 0 and Path(path).parent.is_dir() and not size[0] % 2 and not size[1] % 2:
            self.container = av.open(path, "w")
            self.stream = self.container.add_stream("mpeg4", rate=round(fps))
            self.stream.width, self.stream.height, self.stream.pix_fmt = *size, "yuv420p"

    def isOpened(self):
        return self.container is not None

    def write(self, frame):
        self.check("write")
        if frame.dtype != np.uint8 or frame.shape != (self.size[1], self.size[0], 3) or not frame.flags.c_contiguous:
            self.owner.faults.append(f"a frame of {frame.dtype} {frame.shape}")
            return
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))

    def release(self):
        if not self.released and self.container is not None:
            self.container.mux(self.stream.encode())
            self.container.close()
        self.forget()
