"""What a detector answers: boxes in the pixels of the image that was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .manifest import Preprocessing
from .nms import TOO_MANY_CANDIDATES, TRUNCATED, UNSETTLED
from .preprocess import padded_box
from .results import palette

_REMARKS = {
    UNSETTLED: "some boxes should have been suppressed: the scene needs more steps than the graph has; export the "
    "model with a larger --nms-steps",
    TRUNCATED: "there are more detections than the graph gives: the least certain are missing; export the model with "
    "a larger --max-detections",
    TOO_MANY_CANDIDATES: "more boxes reached the score threshold than the graph looks at: the least certain may be "
    "missing; export the model with a larger --candidates or --score-threshold",
}
_SMALLEST_TEXT, _TEXT_SHARE, _LINE_SHARE = 10, 40, 300


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        label: name of its class.
        index: the class's place among the names.
        score: how certain the network is of it, 0 to 1.
        box: (xmin, ymin, xmax, ymax) in pixels of the image, from its upper left corner.
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detections:
    """A detector's answer to one image, the most certain object first. Iterating over it gives its objects.

    Attributes:
        boxes: float32 array of shape `(n, 4)`, (xmin, ymin, xmax, ymax) in pixels of the image that was given.
        scores: float32 array of shape `(n,)`, descending.
        labels: int32 array of shape `(n,)`, the class of each.
        names: one name a class.
        frame_size: height and width in pixels of the image.
        status: 0 if these are all, exactly; otherwise a sum of flags of :mod:`runtime.nms`.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    names: tuple[str, ...]
    frame_size: tuple[int, int]
    status: int = 0

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels {self.labels.shape} do not fit"
            )
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.names):
            raise ValueError(f"labels {self.labels.min()} to {self.labels.max()} do not fit {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            yield Detection(self.names[label], label, score, (box[0], box[1], box[2], box[3]))

    @property
    def remarks(self) -> list[str]:
        """What is not as it should be about this answer, and what to do about it."""
        return [text for flag, text in _REMARKS.items() if self.status & flag]

    def top(self, k: int) -> list[Detection]:
        """The k most certain objects, or all if there are fewer.

        Raises:
            ValueError: if k is below 1
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected 1 at least")
        return list(self)[:k]

    def draw(self, image: Image.Image) -> Image.Image:
        """The boxes and the names of the classes, drawn on the image.

        Args:
            image: the image that was given, or one of other size: the boxes are drawn in proportion

        Returns:
            an RGB image of the same size; the one given stays as it is
        """
        from PIL import ImageDraw, ImageFont

        drawn = image.convert("RGB")
        drawn = drawn.copy() if drawn is image else drawn
        pen = ImageDraw.Draw(drawn)
        by = (drawn.width / self.frame_size[1], drawn.height / self.frame_size[0]) * 2
        width = max(1, round(max(drawn.size) / _LINE_SHARE))
        font = ImageFont.load_default(max(_SMALLEST_TEXT, max(drawn.size) // _TEXT_SHARE))
        colours = palette(256)
        for each in reversed(list(self)):  # the most certain on top
            colour = tuple(int(v) for v in colours[1 + each.index % 255])
            left, top, right, bottom = (side * factor for side, factor in zip(each.box, by, strict=True))
            # Pillow draws on the pixels of the corners: the last pixel is the one before the edge.
            pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
            text = f"{each.label} {each.score:.0%}"
            if not isinstance(font, ImageFont.FreeTypeFont):  # that of a Pillow without FreeType knows Latin-1 alone
                text = text.encode("latin-1", "replace").decode("latin-1")
            x0, y0, x1, y1 = pen.textbbox((left, top), text, font=font)
            below = min(0.0, top - (y1 - y0) - 2 * width)  # inside the image where there is no room above the box
            at = (left, top - (y1 - y0) - 2 * width - below)
            pen.rectangle((at[0], at[1], at[0] + x1 - x0 + 2 * width, at[1] + y1 - y0 + 2 * width), fill=colour)
            ink = (0, 0, 0) if sum(colour) > 3 * 127 else (255, 255, 255)
            pen.text((at[0] + width + left - x0, at[1] + width + top - y0), text, fill=ink, font=font)
        return drawn

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """The answer in plain values, for JSON.

        Args:
            k: number of objects under `"detections"`; None for all

        Returns:
            `size`, the height and width of the image, `status`, and `detections`, a list of `label`, `index`, `score`
            and `box`
        """
        entries = [
            {"label": d.label, "index": d.index, "score": d.score, "box": list(d.box)}
            for d in (self if k is None else self.top(k))
        ]
        return {"size": list(self.frame_size), "status": self.status, "detections": entries}

    def __repr__(self) -> str:
        first = next(iter(self), None)
        best = "" if first is None else f", first {first.label!r} with score {first.score:.4f}"
        return f"Detections({len(self)} objects{best})"


def boxes_in_frame(
    boxes: NDArray[np.float32], frame_size: tuple[int, int], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Boxes in pixels of an image from those in pixels of the network's input: resizing and padding are undone.

    Args:
        boxes: array of shape `(n, 4)`, (xmin, ymin, xmax, ymax)
        frame_size: height and width of the image
        preprocessing: how it became the network's input

    Returns:
        array of shape `(n, 4)`, clipped to the image
    """
    height, width = frame_size
    top, left, inner_height, inner_width = padded_box(height, width, preprocessing)
    moved = boxes.astype(np.float64) - (left, top, left, top)
    scaled = moved * (width / inner_width, height / inner_height, width / inner_width, height / inner_height)
    return np.clip(scaled, 0, (width, height, width, height)).astype(np.float32)
