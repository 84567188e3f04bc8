"""What a model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .manifest import Preprocessing
from .preprocess import padded_box


@dataclass(frozen=True)
class Prediction:
    """One class of an answer.

    Attributes:
        label: the class's name.
        index: its place among the labels.
        score: its softmax probability, 0 to 1.
    """

    label: str
    index: int
    score: float


@dataclass(frozen=True, eq=False)
class Classification:
    """A classifier's answer to one image.

    Attributes:
        logits: float32 array of shape `(classes,)`.
        labels: one name a class.
    """

    logits: NDArray[np.float32]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.logits.ndim != 1 or len(self.labels) != self.logits.size or not self.labels:
            raise ValueError(f"{len(self.labels)} labels do not fit logits of shape {self.logits.shape}")

    @classmethod
    def from_probabilities(cls, probabilities: NDArray[np.float32], labels: tuple[str, ...]) -> Classification:
        """An answer of a network that gives probabilities: their logarithms serve as logits, to which a constant may be
        added without changing what they say.

        Args:
            probabilities: float32 array of shape `(classes,)`, of sum 1
            labels: one name a class
        """
        return cls(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)), labels)

    def top(self, k: int = 5) -> list[Prediction]:
        """The likeliest classes.

        Args:
            k: how many, 1 at least; all of them if there are fewer

        Returns:
            predictions, likeliest first; of equal ones the lower index first

        Raises:
            ValueError: if k is below 1
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected 1 at least")
        order = np.argsort(-self.logits, kind="stable")[:k]
        scores = self.probabilities()
        return [Prediction(self.labels[i], int(i), float(scores[i])) for i in order]

    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, in float64: shape `(classes,)`, sum 1."""
        exponentials = np.exp(self.logits.astype(np.float64) - float(self.logits.max()))
        return exponentials / exponentials.sum()

    @property
    def index(self) -> int:
        """Index of the likeliest class."""
        return int(self.logits.argmax())

    @property
    def label(self) -> str:
        """Name of the likeliest class."""
        return self.labels[self.index]

    @property
    def score(self) -> float:
        """Softmax probability of the likeliest class, 0 to 1."""
        return float(self.probabilities()[self.index])

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """The answer in plain values, for JSON.

        Args:
            k: number of classes under `"top"`; None for five

        Returns:
            `label`, `index` and `score` of the likeliest class, and `top`, a list of the same for k classes
        """
        top = [{"label": p.label, "index": p.index, "score": p.score} for p in self.top(5 if k is None else k)]
        return {**top[0], "top": top}

    def __repr__(self) -> str:
        others = len(self.labels) - 1
        return f"Classification({self.label!r}, score={self.score:.4f}, {others} other classes)"


@dataclass(frozen=True, eq=False)
class TopClasses:
    """The likeliest classes of one image, of a network that gives no more than those.

    Attributes:
        predictions: likeliest first, 1 at least.
    """

    predictions: tuple[Prediction, ...]

    def __post_init__(self) -> None:
        if not self.predictions:
            raise ValueError("there is no class: expected one at least")

    def top(self, k: int = 5) -> list[Prediction]:
        """The likeliest classes.

        Args:
            k: how many, 1 at least; all there are if those are fewer

        Raises:
            ValueError: if k is below 1
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected 1 at least")
        return list(self.predictions[:k])

    @property
    def index(self) -> int:
        """Index of the likeliest class."""
        return self.predictions[0].index

    @property
    def label(self) -> str:
        """Name of the likeliest class."""
        return self.predictions[0].label

    @property
    def score(self) -> float:
        """Probability of the likeliest class, 0 to 1."""
        return self.predictions[0].score

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """The answer in plain values: see :meth:`Classification.to_dict`."""
        top = [{"label": p.label, "index": p.index, "score": p.score} for p in self.top(5 if k is None else k)]
        return {**top[0], "top": top}

    def __repr__(self) -> str:
        return f"TopClasses({self.label!r}, score={self.score:.4f}, {len(self.predictions) - 1} other classes)"


@dataclass(frozen=True)
class Region:
    """All pixels of one class.

    Attributes:
        label: the class's name.
        index: its place among the labels.
        share: of the image's pixels, 0 to 1.
    """

    label: str
    index: int
    share: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmenter's answer to one image: the class of each pixel.

    Attributes:
        class_map: index of the likeliest class of each of the network's pixels, `(H, W)`, uint8, or int32 where there
            are more than 256 classes; padding that preprocessing added is still in it.
        labels: one name a class.
        frame_size: height and width in pixels of the image that was given.
        preprocessing: how that image became the network's input.
        fits_frame: whether the class map is that of the image's pixels already.
        probabilities: float32 array `(classes, h, w)`, softmax over the classes, where the network gives it.
    """

    class_map: NDArray[np.uint8] | NDArray[np.int32]
    labels: tuple[str, ...]
    frame_size: tuple[int, int]
    preprocessing: Preprocessing
    fits_frame: bool = False
    probabilities: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.class_map.ndim != 2 or not self.class_map.size or not self.labels:
            raise ValueError(f"{len(self.labels)} labels and a class map of shape {self.class_map.shape} are no answer")

    def resized(self) -> NDArray[np.uint8] | NDArray[np.int32]:
        """The class of each pixel of the image that was given.

        What preprocessing did to the image is undone: padding is cut away, and each pixel takes the class of the
        network's pixel that its centre falls into.

        Returns:
            class map of the image's height and width, of the same type
        """
        if self.fits_frame:
            return self.class_map
        cells = (self.class_map.shape[0], self.class_map.shape[1])
        rows, columns = cells_of_pixels(cells, self.preprocessing, self.frame_size)
        return self.class_map[rows[:, None], columns]

    def regions(self, k: int | None = None) -> list[Region]:
        """The classes that the image has, padding left out.

        Args:
            k: how many, 1 at least; None for all

        Returns:
            classes by the share of the image's pixels, largest first; of equal ones the lower index first

        Raises:
            ValueError: if k is below 1
        """
        if k is not None and k < 1:
            raise ValueError(f"k is {k}, expected 1 at least")
        counts = np.bincount(self.resized().ravel(), minlength=len(self.labels))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return [Region(self.labels[i], i, float(counts[i] / counts.sum())) for i in order[:k]]

    def image(self) -> Image.Image:
        """The class map at the size of the image that was given, as a palette image to look at or to save as PNG.

        Returns:
            a Pillow image of mode P whose pixel values are class indices; class 0 is black. Of more than 256 classes,
            a grey image of mode I;16 with the indices.
        """
        resized = self.resized()
        if resized.dtype != np.uint8:
            return Image.fromarray(resized.astype(np.uint16))
        image = Image.fromarray(resized, "L")
        image.putpalette(palette(256).tobytes())
        return image

    def draw(self, image: Image.Image, opacity: float = 0.5) -> Image.Image:
        """The classes' colours laid over the image.

        Args:
            image: the image that was given, or one of other size: the class map is drawn in proportion
            opacity: of the colours, from 0, the image alone, to 1

        Returns:
            an RGB image of the same size; the one given stays as it is

        Raises:
            ValueError: if the opacity is out of range
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity is {opacity}, expected 0 to 1")
        colours = Image.fromarray(palette(256)[self.resized().astype(np.uint8)])  # of more classes some share theirs
        if colours.size != image.size:
            colours = colours.resize(image.size, Image.Resampling.NEAREST)
        return Image.blend(image.convert("RGB"), colours, opacity)

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """The answer in plain values, for JSON.

        Args:
            k: number of classes under `"classes"`; None for all that the image has

        Returns:
            `size`, the height and width of the image, and `classes`, a list of `label`, `index` and `share`
        """
        classes = [{"label": r.label, "index": r.index, "share": r.share} for r in self.regions(k)]
        return {"size": list(self.frame_size), "classes": classes}

    def __repr__(self) -> str:
        largest = self.regions(1)[0]
        height, width = self.frame_size
        return f"Segmentation({height}×{width}, {largest.label!r} on {largest.share:.1%} of it)"


def cells_of_pixels(
    cells: tuple[int, int], preprocessing: Preprocessing, frame_size: tuple[int, int] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row and column of an image, the cell of a network's answer that its centre falls into.

    Args:
        cells: height and width of the answer, which covers the whole input
        preprocessing: how the image becomes the network's input
        frame_size: height and width of the image in pixels; None for the network's input itself

    Returns:
        indices of rows `(height,)` and of columns `(width,)`
    """
    H, W = preprocessing.size
    height, width = frame_size or (H, W)
    top, left, inner_height, inner_width = (0, 0, H, W)
    if frame_size is not None:
        top, left, inner_height, inner_width = padded_box(height, width, preprocessing)
    rows = _nearest(height, inner_height, top, H, cells[0])
    return rows, _nearest(width, inner_width, left, W, cells[1])


def _nearest(length: int, inner: int, offset: int, outer: int, cells: int) -> NDArray[np.int64]:
    """For each of `length` pixels, the cell that its centre falls into, where they fill `inner` of `outer` pixels, from
    `offset` on, and the cells fill all of `outer`. Integers: no rounding decides.
    """
    centres = (2 * np.arange(length, dtype=np.int64) + 1) * inner + 2 * length * offset
    return np.asarray(np.minimum(centres * cells // (2 * length * outer), cells - 1), np.int64)


def palette(colours: int) -> NDArray[np.uint8]:
    """RGB colours that differ as much as they can early on: the bits of the index, lowest first, become the highest
    bits of red, green and blue in turn, as in the label images of Pascal VOC.
    """
    index = np.arange(colours)
    rgb = np.zeros((colours, 3), np.uint8)
    for bit in range(8):
        rgb[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return rgb
