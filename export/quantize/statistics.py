"""What is measured on the float network before anything is quantized: samples of activations, and how much an error at
each place changes the output.

For a network f and an error e that is small and independent of the rest, the expected squared change of the output is
E‖J e‖², with J the Jacobian of f at the place of the error. Its expectation over random signs needs no Jacobian: for
v with independent entries of variance 1, E (vᵀJ)ⱼ² is the squared norm of the j-th column, and vᵀJ is one backward
pass. So all kinds of rounding can be compared in one unit, the relative squared error of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.errors import CalibrationError
from runtime.backends import open_session
from runtime.backends.base import Session

from ..onnx_graph import serialized_with_outputs
from .network import LayerConstants, Network, Quantizer

_SAMPLED_VALUES = 2**25
_MOST_ROWS = 4096
_FEWEST_ROWS = 64


@dataclass(frozen=True)
class ChannelSamples:
    """What was seen of one tensor, channel by channel.

    Attributes:
        values: samples of shape (S, C): all channels at S places, drawn over all images.
        low: smallest value of each channel, over everything, of shape (C,).
        high: largest value of each channel.
    """

    values: Tensor
    low: Tensor
    high: Tensor


class ScaledSamples(Mapping[str, ChannelSamples]):
    """Samples as they are after equalization, computed when they are asked for: all of them are hundreds of megabytes.

    Args:
        samples: of the network as it was
        factors: by tensor, of shape (C,)
    """

    def __init__(self, samples: Mapping[str, ChannelSamples], factors: Mapping[str, Tensor]) -> None:
        self._samples = samples
        self._factors = factors

    def __getitem__(self, name: str) -> ChannelSamples:
        seen, factors = self._samples[name], self._factors.get(name)
        if factors is None or factors.numel() != seen.low.numel():
            return seen
        return ChannelSamples(seen.values * factors, seen.low * factors, seen.high * factors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


@dataclass(frozen=True)
class Sensitivity:
    """How much errors change the output: relative squared error of the output for a unit of squared error.

    Attributes:
        tensors: by activation, for an error at every place of a channel that is not exactly zero, of shape (C,).
        weights: by layer, for an error of each weight, of the shape of the weights.
    """

    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


def collect_samples(
    session: Session,
    batches: Iterable[NDArray[np.float32]],
    image_count: int,
    tensors: Sequence[str],
    seed: int,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, ChannelSamples]:
    """Sample tensors over all images, in memory that does not grow with their number.

    Args:
        session: the float network, `tensors` being its input or among its outputs
        batches: inputs of shape (N, 3, H, W)
        image_count: number of images in all
        tensors: names; their channels lie along the second dimension
        seed: of the places that are drawn
        progress: called with the number of batches done

    Returns:
        samples by tensor

    Raises:
        CalibrationError: if a tensor holds NaN or infinity
    """
    source = session.inputs[0].name
    generator = np.random.default_rng(seed)
    rows: dict[str, list[Tensor]] = {name: [] for name in tensors}
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    share: dict[str, float] = {}
    done = 0
    for done, batch in enumerate(batches, 1):
        values: dict[str, NDArray[Any]] = {**session.run({source: batch}), source: batch}
        if not share and tensors:
            channels = sum(_as_rows(values[name]).shape[1] for name in tensors)
            most = min(max(_SAMPLED_VALUES // channels, _FEWEST_ROWS), _MOST_ROWS)
            share = {name: min(1.0, most * len(batch) / (image_count * _places(values[name]))) for name in tensors}
        for name in tensors:
            x = torch.from_numpy(np.ascontiguousarray(values[name]))
            x = x.reshape(x.shape[0], x.shape[1], -1) if x.ndim > 1 else x.reshape(-1, 1, 1)
            bottom, top = x.amin((0, 2)), x.amax((0, 2))
            if not (torch.isfinite(bottom).all() and torch.isfinite(top).all()):
                raise CalibrationError(f"tensor {name!r} holds NaN or infinity: check the model and the images")
            low[name] = torch.minimum(low.get(name, bottom), bottom)
            high[name] = torch.maximum(high.get(name, top), top)
            places = x.shape[0] * x.shape[2]
            chosen = np.flatnonzero(generator.random(places) < share[name])
            at = torch.from_numpy(chosen)
            rows[name].append(x[at // x.shape[2], :, at % x.shape[2]])
        del values, batch
        if progress is not None:
            progress(done, None)
    if not done:
        raise CalibrationError("there are no images to calibrate on")
    return {name: ChannelSamples(torch.cat(rows[name]), low[name], high[name]) for name in tensors}


def sample_activations(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    image_count: int,
    tensors: Sequence[str],
    seed: int,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, ChannelSamples]:
    """:func:`collect_samples` of a float graph, which is opened for it.

    Args:
        model: whose tensors these are; it is not changed
        batches: see there
        image_count: see there
        tensors: see there
        seed: see there
        progress: see there

    Raises:
        CalibrationError: if a tensor holds NaN or infinity
    """
    session = open_session(serialized_with_outputs(model, tensors), "onnxruntime")
    try:
        return collect_samples(session, batches, image_count, tensors, seed, progress)
    finally:
        session.close()


def output_sensitivity(
    network: Network,
    batches: Iterable[Tensor],
    tensors: Sequence[str],
    layers: Mapping[str, LayerConstants],
    seed: int,
) -> Sensitivity:
    """Measure how much errors change the output, by one backward pass a batch.

    Args:
        network: differentiable
        batches: inputs of shape (N, 3, H, W)
        tensors: names of activations
        layers: weights and biases of layers, by the name of their output
        seed: of the random directions

    Returns:
        sensitivities; those of what does not reach the output are zero
    """
    generator = torch.Generator().manual_seed(seed)
    of_tensors: dict[str, Tensor] = {}
    of_weights = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    images = 0
    for batch in batches:
        leaves = {n: LayerConstants(c.weight.detach().requires_grad_(), c.bias) for n, c in layers.items()}
        seen: dict[str, Tensor] = {}
        outputs = network.run({network.inputs[0]: batch}, layers=leaves, quantizers=watching(tensors, seen))
        loss = sum((random_projection(outputs[name], generator) for name in network.outputs), torch.zeros(()))
        wanted = [*seen.values(), *(leaf.weight for leaf in leaves.values())]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
        for name, x, gradient in zip(seen, seen.values(), gradients, strict=False):
            channels = (x.shape[0], x.shape[1] if x.ndim > 1 else 1, -1)
            squares = torch.zeros(channels[1]) if gradient is None else _active(gradient, x, channels)
            of_tensors[name] = of_tensors.get(name, torch.zeros(channels[1])) + squares
        for name, gradient in zip(leaves, gradients[len(seen) :], strict=True):
            if gradient is not None:
                of_weights[name] += gradient.square()
        images += batch.shape[0]
        del leaves, seen, outputs, loss, wanted, gradients  # before the next batch needs as much
    scale = 1.0 / max(images, 1)
    return Sensitivity(
        {name: value * scale for name, value in of_tensors.items()},
        {name: value * scale for name, value in of_weights.items()},
    )


def watching(names: Iterable[str], seen: dict[str, Tensor]) -> dict[str, Quantizer]:
    """Quantizers that change nothing, and note tensors as something to differentiate by.

    Args:
        names: of the tensors
        seen: where they are noted
    """

    def note(name: str) -> Quantizer:
        def quantizer(x: Tensor) -> Tensor:
            seen[name] = x if x.requires_grad else x.detach().requires_grad_()
            return seen[name]

        return quantizer

    return {name: note(name) for name in names}


def random_projection(output: Tensor, generator: torch.Generator) -> Tensor:
    """A random sum of an output whose squared gradients add up to its relative squared error."""
    norm = output.detach().square().mean().clamp_min(1e-30).sqrt() * (output[0].numel() ** 0.5)
    direction = torch.randint(0, 2, output.shape, generator=generator).to(output.dtype) * 2 - 1
    return (output * direction).sum() / norm


def _active(gradient: Tensor, x: Tensor, channels: tuple[int, int, int]) -> Tensor:
    """Squared gradients summed over a channel, without exact zeros, which every quantizer represents."""
    return (gradient.square() * (x != 0)).reshape(channels).sum((0, 2)).detach()


def _as_rows(x: NDArray[Any]) -> NDArray[Any]:
    return x if x.ndim > 1 else x[:, None]


def _places(x: NDArray[Any]) -> int:
    """Number of places of a tensor in a batch, each with all channels."""
    rows = _as_rows(x)
    return rows.size // rows.shape[1]
