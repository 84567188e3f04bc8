"""What a model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The answer in plain values, for JSON.

        Args:
            k: number of classes under `"top"`

        Returns:
            `label`, `index` and `score` of the likeliest class, and `top`, a list of the same for k classes
        """
        top = [{"label": p.label, "index": p.index, "score": p.score} for p in self.top(k)]
        return {**top[0], "top": top}

    def __repr__(self) -> str:
        others = len(self.labels) - 1
        return f"Classification({self.label!r}, score={self.score:.4f}, {others} other classes)"
