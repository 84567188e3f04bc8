"""What moves, copies or cuts values and computes none, but for those that a resize is between."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from .building import Attributes, Builder, Inputs, Operator, first, three, unary


def _flatten(attributes: Attributes) -> Operator:
    axis = attributes.get("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        at = axis if axis >= 0 else axis + x.ndim
        return x.reshape(int(np.prod(x.shape[:at])), -1) if at else x.reshape(1, -1)

    return unary(flatten)


def _reshape(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, shape, _ = three(x)
        assert shape is not None
        sizes = [int(s) for s in shape]
        if not attributes.get("allowzero", 0):
            sizes = [data.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
        return (data.reshape(sizes),)

    return run


def _squeeze(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, axes, _ = three(x)
        return (data.squeeze() if axes is None else data.squeeze(tuple(axes.tolist())),)

    return run


def _unsqueeze(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, axes, _ = three(x)
        assert axes is not None
        rank = data.ndim + axes.numel()
        for axis in sorted(a + rank if a < 0 else a for a in axes.tolist()):
            data = data.unsqueeze(axis)
        return (data,)

    return run


def _transpose(attributes: Attributes) -> Operator:
    order = attributes.get("perm")
    return unary(lambda x: x.permute(order or list(range(x.ndim))[::-1]))


def _concat(attributes: Attributes) -> Operator:
    axis = attributes["axis"]
    return lambda x: (torch.cat([v for v in x if v is not None], axis),)


def _split(attributes: Attributes) -> Operator:
    axis, count = attributes.get("axis", 0), attributes.get("num_outputs")

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, sizes, _ = three(x)
        if sizes is None:
            parts = count or 1
            return data.split(-(-data.shape[axis] // parts), axis)
        return data.split(sizes.tolist(), axis)

    return run


def _slice(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data = first(x)
        starts, ends, axes, steps = ([] if v is None else v.tolist() for v in [*x[1:], None, None][:4])
        axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index = torch.arange(data.shape[axis])[slice(start, end, step)] if step > 0 else None
            if index is None:  # torch has no negative steps
                index = torch.from_numpy(np.arange(data.shape[axis])[slice(start, end, step)].copy())
            data = data.index_select(axis, index)
        return (data,)

    return run


def _gather(attributes: Attributes) -> Operator:
    axis = attributes.get("axis", 0)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, index, _ = three(x)
        assert index is not None
        at = axis if axis >= 0 else axis + data.ndim
        index = torch.where(index < 0, index + data.shape[at], index)
        flat = data.index_select(at, index.reshape(-1))
        return (flat.reshape(*data.shape[:at], *index.shape, *data.shape[at + 1 :]),)

    return run


def _pad(attributes: Attributes) -> Operator | None:
    mode = attributes.get("mode", b"constant").decode()
    if mode not in ("constant", "reflect"):
        return None

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, pads = first(x), x[1]
        value = x[2] if len(x) > 2 else None
        assert pads is not None
        axes = list(range(data.ndim)) if len(x) < 4 or x[3] is None else x[3].tolist()
        margins = [0] * 2 * data.ndim
        for i, axis in enumerate(axes):
            at = 2 * (data.ndim - 1 - axis % data.ndim)
            margins[at], margins[at + 1] = int(pads[i]), int(pads[i + len(axes)])
        if mode == "reflect":
            for axis in range(data.ndim):  # torch reflects the last dimensions only
                at = 2 * (data.ndim - 1 - axis)
                data = _reflect(data, axis, margins[at], margins[at + 1])
            return (data,)
        return (F.pad(data, margins, value=0.0 if value is None else float(value)),)

    return run


def _reflect(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Continue a tensor beyond its ends as in a mirror; negative margins cut."""
    size = x.shape[axis]
    if not before and not after:
        return x
    period = max(2 * size - 2, 1)
    at = torch.arange(-before, size + after) % period
    return x.index_select(axis, torch.where(at < size, at, period - at))


def _resize(attributes: Attributes) -> Operator | None:
    mode, coordinates = (
        attributes.get("mode", b"nearest"),
        attributes.get("coordinate_transformation_mode", b"half_pixel"),
    )
    plain = not attributes.get("antialias", 0) and "axes" not in attributes and not attributes.get("exclude_outside", 0)
    nearest = mode == b"nearest" and coordinates == b"asymmetric" and attributes.get("nearest_mode") == b"floor"
    linear = mode == b"linear" and coordinates in (b"half_pixel", b"pytorch_half_pixel", b"align_corners")
    if not plain or not (nearest or linear):
        return None

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data = first(x)
        sizes = x[3] if len(x) > 3 else None
        # A factor is used as it is, not as the sizes' quotient, where it makes no whole number of pixels.
        target: Attributes = {}
        if sizes is None:
            scales = x[2]
            assert scales is not None
            target["scale_factor"] = [float(s) for s in scales[2:]]
        else:
            target["size"] = sizes[2:].tolist()
        if nearest:
            return (F.interpolate(data, mode="nearest", **target),)
        corners = coordinates == b"align_corners"
        return (F.interpolate(data, mode="bilinear", align_corners=corners, **target),)

    return run


def _shape(attributes: Attributes) -> Operator:
    start, end = attributes.get("start", 0), attributes.get("end")
    return unary(lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64))


def _constant(attributes: Attributes) -> Operator | None:
    if "value" not in attributes:
        return None
    value = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
    return lambda x: (value,)


def _expand(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, shape, _ = three(x)
        assert shape is not None
        return (data.expand(torch.broadcast_shapes(data.shape, tuple(shape.tolist()))),)

    return run


def _space(attributes: Attributes, to_depth: bool) -> Operator | None:
    block, mode = attributes["blocksize"], attributes.get("mode", b"DCR")

    def deepen(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block * block, h // block, w // block)

    def widen(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        inner = c // (block * block)
        if mode == b"DCR":
            x = x.reshape(n, block, block, inner, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            x = x.reshape(n, inner, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, inner, h * block, w * block)

    return unary(deepen if to_depth else widen)


SHAPES: dict[str, Builder] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Shape": _shape,
    "Constant": _constant,
    "Expand": _expand,
    "DepthToSpace": lambda a: _space(a, to_depth=False),
    "SpaceToDepth": lambda a: _space(a, to_depth=True),
}
"""By the name of the operator."""
