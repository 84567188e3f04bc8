"""From a trained network to one that trains with fake quantization, and back to plain weights and learned ranges."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from holocron.models.reparam import fuse_conv_bn, reparametrize

from .equalization import equalize as equalize_layers
from .fake_quantize import SCHEMES, ActivationQuantizer
from .layers import QuantizedConv2d, QuantizedLinear
from .pixels import PIXEL_STEP, PIXEL_ZERO_POINTS, put_on_pixels
from .placement import place

__all__ = ["convert", "learned_ranges", "load_ranges", "prepare_qat", "save_ranges"]

RANGES_VERSION = 1
_QUANTIZERS = "activation_quantizers"
_META = "quantization"
_SAMPLE = 2**16
"""Values of each activation that a range is chosen on: a part of each batch where there are more."""
_TOLERANCE = 1e-3
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
_IN_PLACE = {operator.iadd: operator.add, "add_": "add", "relu_": "relu", F.relu_: F.relu, torch.relu_: torch.relu}


def prepare_qat(
    model: nn.Module,
    calibration: Tensor | Iterable[Tensor],
    scheme: str = "trt",
    per_channel: bool = True,
    equalize: bool | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
) -> fx.GraphModule:
    """Make a copy of a network that computes with fake quantization, in exactly the scheme that is exported.

    The copy is reparameterized, batch normalization is folded into the convolutions before it (what the device runs has
    neither), dropout is left out, and quantizers are placed where :func:`export.export_model` places them. Weights and
    ranges are then trained together, the rounding being passed over by the gradient (`Jacob et al.
    <https://arxiv.org/abs/1712.05877>`_, `LSQ <https://arxiv.org/abs/1902.08153>`_). Parameters of layers keep the
    names that they have in the reparameterized network.

    Args:
        model: the trained network, which takes one image tensor (N, C, H, W); it is not changed
        calibration: images to choose the first ranges on: a batch, or an iterable of batches
        scheme: `"trt"` or `"cpu"`
        per_channel: whether each output channel of the weights has a scale, or the whole tensor one
        equalize: move scale between layers first, where it is exact (:func:`~holocron.nn.quantization.equalize`). By
            default where `per_channel` is off: one scale then has to serve all channels, and the layers of a chain get
            weights of one range, which one learning rate suits. Scales of their own make up for unequal channels by
            themselves, and lose more to the activations that change than they gain.
        normalization: mean and deviation that images of values from 0 to 1 are normalized with. The network then undoes
            it and its first layers read pixels, which 8 bits hold exactly, where its input goes into convolutions alone
            (:mod:`~holocron.nn.quantization.pixels`)

    Returns:
        the network with fake quantization; :func:`learned_ranges` and :func:`convert` give what is exported

    Raises:
        ValueError: if there is nothing to calibrate on, the network cannot be traced, or it has a layer that cannot be
            fake-quantized as it would be exported
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is expected to be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if equalize is None:
        equalize = not per_channel
    batches = [calibration] if isinstance(calibration, Tensor) else calibration
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    network: fx.GraphModule | None = None
    pixels: fx.Node | None = None
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.ndim < 2 or not len(batch):
            raise ValueError(f"calibration is expected to be batches of images, got {_describe(batch)}")
        if network is None:
            network = _plain_network(model, batch.to(device))
            if normalization is not None:
                pixels = put_on_pixels(network, *normalization)
                with torch.no_grad():
                    ShapeProp(network).propagate(batch.to(device))
            if equalize:
                equalize_layers(network)
            # Once channels have the same range, clipping its ends costs more than it gains: each end is a channel.
            seen = _insert(network, scheme, per_channel, clip=not equalize)
        with torch.no_grad():
            network(batch.to(device))
    if network is None:
        raise ValueError("calibration has no batch: ranges are chosen on images like those the network will see")
    for watcher in seen:
        watcher.finish()
    if pixels is not None:
        quantizer = network.get_submodule(str(next(iter(pixels.users)).target))
        assert isinstance(quantizer, ActivationQuantizer)
        quantizer.set_params(PIXEL_STEP, PIXEL_ZERO_POINTS[scheme])
        quantizer.learned = False
    return network.train(model.training)


def convert(model: fx.GraphModule) -> fx.GraphModule:
    """Give back the plain network, with the trained weights as they are before rounding.

    Args:
        model: made by :func:`prepare_qat`; it is not changed

    Returns:
        network in evaluation mode, to be exported together with :func:`learned_ranges`

    Raises:
        ValueError: if the model was not made by :func:`prepare_qat`
    """
    _settings(model)
    plain = deepcopy(model).eval()
    floats: dict[str, nn.Module] = {}
    for node in list(plain.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith(f"{_QUANTIZERS}."):
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    for node in list(plain.graph.nodes):
        layer = plain.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            quantizer, node.args = node.args[1], node.args[:1]
            plain.graph.erase_node(quantizer)
            floats[str(node.target)] = layer.to_float()
    for name, layer in floats.items():  # at the end: a layer may run more than once
        plain.set_submodule(name, layer)
    delattr(plain, _QUANTIZERS)
    del plain.meta[_META]
    return fx.GraphModule(plain, plain.graph, type(model).__name__)


@torch.no_grad()
def learned_ranges(model: fx.GraphModule) -> dict[str, Any]:
    """The scales and zero points that the network computes with, in plain numbers.

    Args:
        model: made by :func:`prepare_qat`

    Returns:
        dictionary that JSON can hold: `version`, `scheme`, `per_channel`; `activations`, by role
        (:mod:`~holocron.nn.quantization.placement`) `scale` and `zero_point`; `weights`, by parameter name the list of
        scales, one or one for each output channel; and `digest`, by which the exporter knows the weights that all this
        belongs to. The float32 numbers are exact.

    Raises:
        ValueError: if the model was not made by :func:`prepare_qat`, or has learned something that is not finite
    """
    settings = _settings(model)
    activations: dict[str, dict[str, float | int]] = {}
    for name, roles in settings["roles"].items():
        quantizer = model.get_submodule(name)
        assert isinstance(quantizer, ActivationQuantizer)
        scale, zero_point = (tensor.item() for tensor in quantizer.params())
        activations |= {role: {"scale": scale, "zero_point": int(zero_point)} for role in roles}
    weights: dict[str, list[float]] = {}
    stored: dict[str, bytes] = {}
    for node in model.graph.nodes:
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            data = model.get_submodule(str(node.args[1].target))
            assert isinstance(data, ActivationQuantizer)
            name = f"{node.target}.weight"
            if not torch.isfinite(layer.weight).all():
                raise ValueError(f"{name} is NaN or infinite: the training has diverged, lower its learning rate")
            stored[name] = hashlib.sha256(layer.weight.cpu().contiguous().numpy().astype("<f4").tobytes()).digest()
            weights[name] = layer.weight_scale(data).tolist()
    return {
        "version": RANGES_VERSION,
        "scheme": settings["scheme"],
        "per_channel": settings["per_channel"],
        "activations": dict(sorted(activations.items())),
        "weights": weights,
        "digest": hashlib.sha256(b"".join(stored[name] for name in sorted(stored))).hexdigest(),
    }


@torch.no_grad()
def load_ranges(model: fx.GraphModule, ranges: Mapping[str, Any]) -> None:
    """Set the scales and zero points of a network, those of the weights for good.

    Another step of a layer's weights would move all of them to other codes at once, away from a rounding that was
    chosen with care. Those of activations are learned from here on.

    Args:
        model: made by :func:`prepare_qat`
        ranges: what :func:`learned_ranges` gives, whose digest does not matter

    Raises:
        ValueError: if the model was not made by :func:`prepare_qat`, or these are no ranges of it
    """
    settings = _settings(model)
    for key in ("scheme", "per_channel"):
        if ranges[key] != settings[key]:
            raise ValueError(f"{key} of the ranges is {ranges[key]!r}, that of the model is {settings[key]!r}")
    for name, roles in settings["roles"].items():
        quantizer = model.get_submodule(name)
        assert isinstance(quantizer, ActivationQuantizer)
        known = {tuple(ranges["activations"][role].values()) for role in roles if role in ranges["activations"]}
        if len(known) != 1:
            raise ValueError(f"there are {len(known)} ranges for {' and '.join(roles)}, expected one")
        quantizer.set_params(*known.pop())
    for name, layer in model.named_modules():
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            scale = ranges["weights"].get(f"{name}.weight")
            if scale is None:
                raise ValueError(f"there is no range for {name}.weight")
            layer.weight_quantizer.set_scale(torch.tensor(scale))
            layer.weight_quantizer.learned = False


def save_ranges(model: fx.GraphModule, path: str | os.PathLike[str]) -> None:
    """Write :func:`learned_ranges` to a JSON file.

    Args:
        model: made by :func:`prepare_qat`
        path: the file
    """
    Path(path).write_text(json.dumps(learned_ranges(model), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _settings(model: nn.Module) -> dict[str, Any]:
    settings = model.meta.get(_META) if isinstance(model, fx.GraphModule) else None
    if not isinstance(settings, dict):
        raise ValueError(f"expected a network made by prepare_qat, got a {type(model).__name__}")
    return settings


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _plain_network(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """A traced copy of a network in evaluation mode, of plain layers, nothing in place, with shapes at its nodes."""
    copy = deepcopy(model).eval().requires_grad_(True)
    with torch.no_grad():
        expected = copy(example)
    reparametrize(copy)
    try:
        graph = fx.Tracer().trace(copy)
    except Exception as e:  # tracing runs the model's own code, which may raise anything
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{type(model).__name__} cannot be traced for quantization-aware training: {reason}") from e
    network = fx.GraphModule(copy, graph, type(model).__name__)
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise ValueError(f"{type(model).__name__} is expected to take one tensor of images")
    _fold_normalization(network)
    _clean(network)
    network.delete_all_unused_submodules()
    network.recompile()
    with torch.no_grad():
        ShapeProp(network).propagate(example)
        found = network(example)
    _check_same(expected, found, type(model).__name__)
    return network


def _check_same(expected: Any, found: Any, name: str) -> None:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        raise ValueError(f"{name} is expected to give one tensor, got a {type(expected).__name__}")
    if not torch.isfinite(expected).all():
        raise ValueError(f"{name} answers NaN or infinity on the calibration images: it cannot be quantized")
    if (found - expected).norm() > _TOLERANCE * expected.norm():
        raise ValueError(f"{name} answers otherwise once it is traced: its forward pass depends on more than its input")


def _fold_normalization(network: fx.GraphModule) -> None:
    """Fold each batch normalization into the convolution that alone stands before it."""
    modules = dict(network.named_modules())
    targets = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    for node in list(network.graph.nodes):
        if node.op != "call_module" or type(modules[str(node.target)]) is not nn.BatchNorm2d:
            continue
        before = node.args[0]
        if before.op != "call_module" or type(modules[str(before.target)]) is not nn.Conv2d or len(before.users) > 1:
            continue
        if targets.count(str(before.target)) > 1 or targets.count(str(node.target)) > 1:
            raise ValueError(f"{before.target} and {node.target} run more than once: they cannot be folded")
        fused = fuse_conv_bn(modules[str(before.target)], modules[str(node.target)])
        network.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)


def _clean(network: fx.GraphModule) -> None:
    """Take out what does nothing in evaluation mode, and what writes over its input, which gradients need."""
    modules = dict(network.named_modules())
    for module in modules.values():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    for node in list(network.graph.nodes):
        idle = node.op == "call_module" and isinstance(modules[str(node.target)], _DROPOUTS)
        idle = idle or node.target in (F.dropout, "contiguous")
        if idle:
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
        elif node.op in ("call_function", "call_method"):
            node.target = _IN_PLACE.get(node.target, node.target)
            if "inplace" in node.kwargs:
                node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}


class _Watcher:
    """Sees the values that a quantizer will round, and chooses its range."""

    def __init__(self, quantizer: ActivationQuantizer, name: str) -> None:
        self.quantizer = quantizer
        self.name = name
        self.low = self.high = torch.zeros(())
        self.sample = torch.zeros(0)
        quantizer.enabled = False
        self.hook = quantizer.register_forward_pre_hook(self.watch)

    def watch(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].detach().flatten().float()
        # These keep NaN, for the quantizer to refuse.
        self.low, self.high = torch.minimum(self.low, values.min().cpu()), torch.maximum(self.high, values.max().cpu())
        sample = torch.cat([self.sample, values[:: max(1, values.numel() * 8 // _SAMPLE)].cpu()])
        self.sample = sample[:: max(1, -(-sample.numel() // _SAMPLE))]

    def finish(self) -> None:
        self.hook.remove()
        self.quantizer.enabled = True
        try:
            self.quantizer.calibrate(self.sample, self.low.item(), self.high.item())
        except ValueError as e:
            raise ValueError(f"{self.name}: {e}") from e


def _insert(network: fx.GraphModule, scheme: str, per_channel: bool, clip: bool) -> list[_Watcher]:
    """Put quantizers into a network, in place; they watch until their ranges are chosen."""
    graph, modules = network.graph, dict(network.named_modules())
    if hasattr(network, _QUANTIZERS):
        raise ValueError(f"the network has an attribute {_QUANTIZERS!r} already: has it been prepared before?")
    placement = place(graph, modules, scheme)
    if not placement.layers:
        raise ValueError("the network has no convolution and no linear layer: there is nothing to quantize")
    device = next(network.parameters()).device
    quantizers = nn.ModuleList()
    network.add_module(_QUANTIZERS, quantizers)
    watchers, roles, data = [], {}, {}
    for source, tensors in placement.groups.items():
        name = f"{_QUANTIZERS}.{len(quantizers)}"
        quantizer = ActivationQuantizer(scheme).to(device)
        quantizers.append(quantizer)
        watchers.append(_Watcher(quantizer, f"range of {source.name}"))
        roles[name] = placement.roles[source]
        for tensor in tensors:
            data[tensor] = name
    for target in dict.fromkeys(str(node.target) for node in placement.layers):
        layer = modules[target]
        kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        network.set_submodule(target, kind.from_float(layer, scheme, per_channel, clip))
    for node in placement.layers:  # while they still read the tensors that the places were chosen for
        source = node.all_input_nodes[0]
        with graph.inserting_before(node):
            node.args, node.kwargs = (source, graph.get_attr(data[source])), {}
    for tensor, name in data.items():
        users = [user for user in tensor.users if user.op != "output"]
        with graph.inserting_after(tensor):
            rounded = graph.call_module(name, (tensor,))
        for user in users:
            user.replace_input_with(tensor, rounded)
    network.meta[_META] = {"scheme": scheme, "per_channel": per_channel, "roles": roles}
    graph.lint()
    network.recompile()
    return watchers
