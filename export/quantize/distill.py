"""Tuning a quantized network as a whole, so that its output is the float network's.

Layer after layer, each error is made small where it arises, but not seen from the output. Here the rounding of all
weights, all biases and the steps of all activations are moved together along the gradient of the squared error of the
output, with rounding passed straight through. The float network is the teacher: no labels are used. Few images give
many examples: they are flipped, shifted and mixed.

Source: the gradient of a step is that of S. Esser et al., "Learned Step Size Quantization", arXiv 1902.08153; mixed
images are those of H. Zhang et al., "mixup", arXiv 1710.09412, with the teacher's answer in place of mixed labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .fake import FakeQuantizer, fake_quantize
from .layerwise import QuantizedLayer
from .network import LayerConstants, Network, Quantizer
from .rounding import LEVELS

_WEIGHT_RATE = 0.03
_BIAS_RATE = 1e-3
_SCALE_RATE = 2e-3
_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Tuned:
    """What tuning moved.

    Attributes:
        layers: by output name.
        scales: of activations, by the tensor that the range is of.
        errors: relative squared error of the output in the course of it, on the images as they were varied.
    """

    layers: Mapping[str, QuantizedLayer]
    scales: Mapping[str, float]
    errors: tuple[float, ...]


def tune(
    network: Network,
    layers: Mapping[str, QuantizedLayer],
    axes: Mapping[str, int],
    quantizers: Mapping[str, FakeQuantizer],
    sources: Mapping[str, str],
    read: Callable[[Sequence[int]], Tensor],
    image_count: int,
    steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int | None], None] | None = None,
) -> Tuned:
    """Tune a quantized network.

    Args:
        network: the float network, differentiable
        layers: as they were rounded
        axes: of the output channels of their weights
        quantizers: of activations
        sources: for each of them the tensor that its range is of: those with the same move together
        read: gives the images with these numbers, of shape (N, 3, H, W)
        image_count: number of images
        steps: updates to make
        batch_size: images in each
        seed: of what is drawn
        progress: called with the number of updates done and in all

    Returns:
        the layers and the activations' scales
    """
    generator = torch.Generator().manual_seed(seed)
    state = _State(layers, axes, quantizers, sources)
    optimizer = torch.optim.Adam(state.groups(), betas=_BETAS)
    rates = [group["lr"] for group in optimizer.param_groups]
    errors: list[float] = []
    order: list[int] = []
    for step in range(steps):
        while len(order) < batch_size:
            order += torch.randperm(image_count, generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        batch = varied(read(chosen), generator)
        feed = {network.inputs[0]: batch}
        with torch.no_grad():
            wanted = network.run(feed)
        with torch.enable_grad():
            got = network.run(feed, layers=state.layers(), quantizers=state.quantizers())
            loss = sum((_relative_error(got[n], wanted[n]) for n in network.outputs), torch.zeros(()))
            loss = loss / len(network.outputs)
            optimizer.zero_grad()
            loss.backward()
        # Down to nothing, so that weights settle on one side of where they round.
        share = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.step()
        errors.append(float(loss.detach()))
        if progress is not None:
            progress(step + 1, steps)
    return Tuned(state.rounded(), state.scales(), tuple(errors))


def varied(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Images flipped, shifted by up to an eighth, and half of them mixed with another one.

    Args:
        batch: of shape (N, C, H, W)
        generator: draws how

    Returns:
        a batch of the same shape
    """
    count, _, height, width = batch.shape
    flipped = torch.rand(count, generator=generator) < 0.5
    batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
    vertical, horizontal = min(height // 8, height - 1), min(width // 8, width - 1)
    if vertical and horizontal:
        padded = F.pad(batch, [horizontal, horizontal, vertical, vertical], mode="reflect")
        top = torch.randint(0, 2 * vertical + 1, (count,), generator=generator).tolist()
        left = torch.randint(0, 2 * horizontal + 1, (count,), generator=generator).tolist()
        cut = [padded[i, :, t : t + height, x : x + width] for i, (t, x) in enumerate(zip(top, left, strict=True))]
        batch = torch.stack(cut)
    mixed = (torch.rand(count, generator=generator) < 0.5).to(batch.dtype)
    share = (torch.rand(count, generator=generator) * 0.5 * mixed)[:, None, None, None]
    return batch * (1.0 - share) + batch.roll(1, 0) * share


class _State:
    """What is tuned: latent weights in units of their step, biases in units of their spread, logarithms of scales."""

    def __init__(
        self,
        layers: Mapping[str, QuantizedLayer],
        axes: Mapping[str, int],
        quantizers: Mapping[str, FakeQuantizer],
        sources: Mapping[str, str],
    ) -> None:
        self._before = layers
        self._quantizers = quantizers
        self._sources = sources
        self._weights: dict[str, Tensor] = {}
        self._steps: dict[str, Tensor] = {}
        self._shifts: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}
        for name, layer in layers.items():
            shape = [-1 if i == axes[name] else 1 for i in range(layer.codes.ndim)]
            self._steps[name] = layer.scale.reshape(shape)
            self._weights[name] = layer.codes.to(torch.float32).requires_grad_()
            if layer.bias is not None:
                self._spread[name] = layer.bias.abs().mean().clamp_min(1e-12)
                self._shifts[name] = torch.zeros_like(layer.bias).requires_grad_()
        self._logs = {source: torch.zeros(()).requires_grad_() for source in dict.fromkeys(sources.values())}

    def groups(self) -> list[dict[str, object]]:
        return [
            {"params": list(self._weights.values()), "lr": _WEIGHT_RATE},
            {"params": list(self._shifts.values()), "lr": _BIAS_RATE},
            {"params": list(self._logs.values()), "lr": _SCALE_RATE},
        ]

    def layers(self) -> dict[str, LayerConstants]:
        return {
            name: LayerConstants(_round_through(weight) * self._steps[name], self._bias(name))
            for name, weight in self._weights.items()
        }

    def quantizers(self) -> dict[str, Quantizer]:
        return {name: self._quantizer(name) for name in self._quantizers}

    def rounded(self) -> dict[str, QuantizedLayer]:
        with torch.no_grad():
            return {
                name: QuantizedLayer(_round_through(weight).to(torch.int8), self._before[name].scale, self._bias(name))
                for name, weight in self._weights.items()
            }

    def scales(self) -> dict[str, float]:
        return {
            self._sources[name]: q.scale * math.exp(float(self._logs[self._sources[name]].detach()))
            for name, q in self._quantizers.items()
        }

    def _bias(self, name: str) -> Tensor | None:
        before = self._before[name].bias
        return None if before is None else before + self._shifts[name] * self._spread[name]

    def _quantizer(self, name: str) -> Quantizer:
        q, log = self._quantizers[name], self._logs[self._sources[name]]
        scale = q.scale * log.exp()
        return lambda x: fake_quantize(x, scale, q.zero_point, q.low, q.high)


def _round_through(latent: Tensor) -> Tensor:
    rounded = torch.clamp(torch.round(latent.detach()), -LEVELS, LEVELS)
    return latent + (rounded - latent.detach()) if latent.requires_grad and torch.is_grad_enabled() else rounded


def _relative_error(got: Tensor, wanted: Tensor) -> Tensor:
    return (got - wanted).square().mean() / wanted.square().mean().clamp_min(1e-30)
