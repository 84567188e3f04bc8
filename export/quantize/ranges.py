"""Choosing the range of each activation by the error that it causes at the output of the network.

What clipping cuts off has the same sign at all places of an image, so its effects add up where those of rounding
average out; squared errors of the tensor itself would make ranges too narrow. Here the error of a candidate is
projected through the network, as a whole, image by image: for a random direction v at the output, E (vᵀJe)² is the
squared error that e causes there, and vᵀJ is one backward pass (see :mod:`~export.quantize.statistics`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from calib import AUTO, METHODS, TensorRange, make_observer

from .centre import tensor_params
from .fake import FakeQuantizer, Quantizer
from .network import Network
from .statistics import ChannelSamples, random_projection, watching

_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
_TINY = 2.0**-100


@dataclass(frozen=True)
class RangeChoice:
    """Why an activation has its range.

    Attributes:
        method: the candidate that was chosen: one of :data:`calib.METHODS`, or a share of the largest value.
        errors: relative squared error of the output that each candidate causes; empty where none was compared.
    """

    method: str
    errors: Mapping[str, float] = field(default_factory=dict)


def candidate_ranges(seen: ChannelSamples, methods: tuple[str, ...] = METHODS) -> dict[str, TensorRange]:
    """Ranges worth comparing.

    Args:
        seen: samples of a tensor
        methods: those of :data:`calib.METHODS` to try

    Returns:
        ranges by method, and by the share of the largest values that they cover
    """
    low, high = min(float(seen.low.amin()), 0.0), max(float(seen.high.amax()), 0.0)
    if max(-low, high) < _TINY:
        return {"minmax": TensorRange(low, high, 1.0, (0.0, 1.0))}
    everything = TensorRange(low, high, max(-low, high), (low, high))
    found = {"minmax": everything}
    for method in methods:
        if method != "minmax":
            observer = make_observer(method)
            observer.observe(seen.values.numpy())
            observer.observe(np.array([low, high], np.float32))
            found[method] = replace(observer.ranges(), minimum=low, maximum=high)
    for share in _SHARES:
        symmetric = everything.symmetric * share
        found[f"{share:g}"] = TensorRange(low, high, symmetric, (low * share, high * share))
        if low < 0.0 < high:
            found[f"{share:g} above"] = TensorRange(low, high, symmetric, (low, high * share))
            found[f"{share:g} below"] = TensorRange(low, high, symmetric, (low * share, high))
    return found


def choose_ranges(
    network: Network,
    batches: Iterable[Tensor],
    samples: Mapping[str, ChannelSamples],
    scheme: str,
    seed: int,
    fixed: Mapping[str, TensorRange] | None = None,
    method: str = AUTO,
    centred: Collection[str] = (),
) -> tuple[dict[str, TensorRange], dict[str, RangeChoice]]:
    """The range of each activation with the least error at the network's output.

    Args:
        network: the float network; where gradients do not pass it, the squared error of the activations decides
        batches: inputs of shape (N, 3, H, W)
        samples: of each activation
        scheme: `"cpu"` or `"trt"`
        seed: of the random directions
        fixed: ranges that are known
        method: :data:`calib.AUTO` to compare, or one of :data:`calib.METHODS` for all tensors
        centred: activations that are spread over all codes, of :func:`~export.quantize.centre.centred_tensors`

    Returns:
        ranges, and why, by tensor
    """
    fixed = fixed or {}
    wanted = METHODS if method == AUTO else (method,)
    candidates = {n: {"known": fixed[n]} if n in fixed else candidate_ranges(s, wanted) for n, s in samples.items()}
    if not candidates:
        return {}, {}
    if method != AUTO or not network.differentiable:
        usual = "mse" if method == AUTO else method
        chosen = {name: usual if usual in found else next(iter(found)) for name, found in candidates.items()}
        return (
            {name: candidates[name][by] for name, by in chosen.items()},
            {name: RangeChoice(by) for name, by in chosen.items()},
        )
    errors = _errors(network, batches, candidates, scheme, seed, centred)
    ranges, choices = {}, {}
    for name, found in errors.items():
        best = min(found, key=lambda m: found[m])
        ranges[name] = candidates[name][best]
        choices[name] = RangeChoice(best, found)
    return ranges, choices


def _errors(
    network: Network,
    batches: Iterable[Tensor],
    candidates: Mapping[str, Mapping[str, TensorRange]],
    scheme: str,
    seed: int,
    centred: Collection[str],
) -> dict[str, dict[str, float]]:
    quantizers = {
        name: {m: FakeQuantizer(tensor_params(found, scheme, name in centred)) for m, found in by_method.items()}
        for name, by_method in candidates.items()
    }
    sums = {name: dict.fromkeys(found, 0.0) for name, found in candidates.items()}
    generator = torch.Generator().manual_seed(seed)
    images = 0
    for batch in batches:
        seen: dict[str, Tensor] = {}
        with torch.enable_grad():
            outputs = network.run({network.inputs[0]: batch}, quantizers=watching(candidates, seen))
            loss = sum((random_projection(outputs[name], generator) for name in network.outputs), torch.zeros(()))
            gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, list(seen.values()), allow_unused=True)
        del outputs, loss
        for name, gradient in zip(seen, gradients, strict=True):
            if gradient is not None:
                _add_errors(sums[name], quantizers[name], seen[name].detach(), gradient)
        images += batch.shape[0]
        del seen, gradients, gradient  # before the next batch needs as much
    return {name: {m: value / max(images, 1) for m, value in found.items()} for name, found in sums.items()}


def _add_errors(sums: dict[str, float], quantizers: Mapping[str, Quantizer], x: Tensor, gradient: Tensor) -> None:
    """Add up what rounding a tensor in each way does to the output, to first order."""
    for method, quantizer in quantizers.items():
        projected = ((quantizer(x) - x) * gradient).flatten(1).sum(1)
        sums[method] += float(projected.square().sum())
