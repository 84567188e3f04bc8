"""What the functions of every kind of operator are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs], tuple[Tensor, ...]]
"""Maps a node's inputs, None for those left out, to its outputs."""
Attributes = dict[str, Any]
"""A node's, by name."""
Builder = Callable[[Attributes], Operator | None]
"""Makes the function of a node; None where an attribute asks for what is not written here."""


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of its first input."""
    return lambda x: (function(first(x)),)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of two inputs, or of more from left to right."""

    def run(x: Inputs) -> tuple[Tensor, ...]:
        values = [v for v in x if v is not None]
        return (functools.reduce(function, values),)

    return run


def first(x: Inputs) -> Tensor:
    """The first input, which no operator is without."""
    assert x[0] is not None
    return x[0]


def three(x: Inputs) -> tuple[Tensor, Any, Any]:
    """The first three inputs, None for those left out."""
    rest = [*x[1:], None, None]
    return first(x), rest[0], rest[1]


def plain(operator: Operator) -> Builder:
    """Of an operator without attributes."""
    return lambda attributes: operator
