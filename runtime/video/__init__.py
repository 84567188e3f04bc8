"""Videos, streams and cameras: their frames, and videos written with what was found in them.

:mod:`~runtime.video.readers` reads through PyAV or OpenCV, whichever :mod:`~runtime.video.libraries` finds;
:mod:`~runtime.video.newest` keeps up with a camera, :mod:`~runtime.video.writer` writes.
"""

from .video import VIDEO_EXTENSIONS, Video, open_video

__all__ = ["VIDEO_EXTENSIONS", "Video", "open_video"]
