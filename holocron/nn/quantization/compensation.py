"""A start for training from weights that are rounded so that each layer's output changes least.

Rounding to the nearest is the best for a weight and a poor choice for a layer: its errors add up in the output. Here
each layer's weights are put on their grid one after the other, with the error of each compensated in those that
follow, and the bias takes up what is left of the mean error. The weights then lie in the middle between two roundings,
so that a training moves to another code only what its gradients agree about.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .layers import QuantizedConv2d, QuantizedLinear
from .prepare import convert
from .rounding import round_compensating

__all__ = ["compensate"]

_ROWS_PER_COLUMN = 2.0
_FEWEST_ROWS = 2048


@torch.no_grad()
def compensate(model: fx.GraphModule, images: Tensor, seed: int = 0) -> None:
    """Round the weights of a prepared network for the outputs of its layers, in place, first layer first.

    Each layer is rounded for the quantized inputs that it will see, by the second moments of these (`GPTQ
    <https://arxiv.org/abs/2210.17323>`_); biases are corrected to the mean that the layer has without any rounding
    (`Nagel et al. <https://arxiv.org/abs/1906.04721>`_). Layers that run more than once are left as they are.

    Args:
        model: made by :func:`~holocron.nn.quantization.prepare_qat`
        images: of shape (N, C, H, W), a few hundred; the network runs on all of them at once
        seed: of the places of each layer's input that are looked at

    Raises:
        ValueError: if the model was not made by :func:`~holocron.nn.quantization.prepare_qat`, or there is no image
    """
    plain = convert(model)
    if not len(images):
        raise ValueError("there is no image to compensate on: pass those that the ranges were chosen on")
    images = images.to(next(model.parameters()).device)
    means: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str, out: Tensor) -> None:
        means[name] = _channel_means(out)
        calls[name] = calls.get(name, 0) + 1

    for name, layer in plain.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda module, args, out, name=name: note(name, out))
    plain(images)
    once = {name: mean for name, mean in means.items() if calls[name] == 1}
    training = model.training
    _Compensation(model.eval(), once, seed).run(images)
    model.train(training)


class _Compensation(fx.Interpreter):
    """Runs the network, and rounds each layer when its input is there."""

    def __init__(self, model: fx.GraphModule, means: dict[str, Tensor], seed: int) -> None:
        super().__init__(model)
        self.means = means
        self.generator = torch.Generator().manual_seed(seed)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.module.get_submodule(target)
        if not isinstance(layer, (QuantizedConv2d, QuantizedLinear)) or target not in self.means:
            return super().call_module(target, args, kwargs)
        x, data = args
        groups, weight = getattr(layer, "groups", 1), layer.weight
        rows = _rows(layer, x, self.generator)
        rows = rows - rows.mean(1, keepdim=True)
        moments = rows.transpose(1, 2) @ rows / rows.shape[1]
        scale = layer.weight_scale(data).expand(len(weight))
        codes = round_compensating(weight.reshape(groups, len(weight) // groups, -1), moments, scale.view(groups, -1))
        weight.copy_(codes.reshape(weight.shape) * scale.view(-1, *[1] * (weight.ndim - 1)))
        if layer.bias is not None:
            out = super().call_module(target, args, kwargs)
            layer.bias.add_(self.means[target] - _channel_means(out))
        return super().call_module(target, args, kwargs)


def _channel_means(out: Tensor) -> Tensor:
    return out.transpose(0, 1).flatten(1).mean(1)


def _rows(layer: QuantizedConv2d | QuantizedLinear, x: Tensor, generator: torch.Generator) -> Tensor:
    """What a layer multiplies its weights with, at places drawn at random: (groups, places, inputs of a group)."""
    if isinstance(layer, QuantizedLinear):
        return x[None]
    columns = layer.weight[0].numel()
    margins = [side for size in reversed(_padding(layer)) for side in size]
    padded = F.pad(x, margins, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    windows = padded
    for dim in (2, 3):
        spread = layer.dilation[dim - 2] * (layer.kernel_size[dim - 2] - 1) + 1
        windows = windows.unfold(dim, spread, layer.stride[dim - 2])
    windows = windows[..., :: layer.dilation[0], :: layer.dilation[1]]
    height, width = windows.shape[2:4]
    wanted = math.ceil(max(_FEWEST_ROWS, _ROWS_PER_COLUMN * columns) / len(x))
    places = torch.arange(height * width).expand(len(x), -1)
    if wanted < height * width:
        places = torch.randint(height * width, (len(x), wanted), generator=generator)
    places = places.to(x.device)
    image = torch.arange(len(x), device=x.device)[:, None]
    rows = windows[image, :, places // width, places % width].flatten(0, 1)
    return rows.reshape(len(rows), layer.groups, columns).transpose(0, 1)


def _padding(layer: nn.Conv2d) -> list[tuple[int, int]]:
    """Margins before and after, for height and width."""
    if isinstance(layer.padding, str):
        total = [
            d * (k - 1) * (layer.padding == "same") for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        return [(t // 2, t - t // 2) for t in total]
    return [(int(p), int(p)) for p in layer.padding]
