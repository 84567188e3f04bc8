"""How an engine is run, checked and frozen."""

from __future__ import annotations

from dataclasses import dataclass

_MOST_CONTEXTS = 64


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is run.

    Attributes:
        contexts: threads that run it at once, 1 to 64; others wait. Each has buffers and activations of its own, made
            when it is first needed.
        cuda_graphs: whether inference is recorded at the second run of a shape and replayed from then on, which costs
            the processor less.
        zero_copy: work on the host's memory instead of copying it, where the two are the same (Jetson): faster for what
            is read once, slower for what is read often.
    """

    contexts: int = 4
    cuda_graphs: bool = True
    zero_copy: bool = False

    def __post_init__(self) -> None:
        """Refuse what no session can do.

        Raises:
            TypeError: if contexts is not an integer
            ValueError: if it is out of range
        """
        if isinstance(self.contexts, bool) or not isinstance(self.contexts, int):
            raise TypeError(f"contexts is {self.contexts!r}, expected an integer")
        if not 1 <= self.contexts <= _MOST_CONTEXTS:
            raise ValueError(f"contexts is {self.contexts}, expected 1 to {_MOST_CONTEXTS}")
