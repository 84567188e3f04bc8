"""Activations, arithmetic, reductions and normalization: what leaves places where they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from .building import Attributes, Builder, Inputs, Operator, binary, first, plain, three, unary


def _clip(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, low, high = three(x)
        if low is None and high is None:
            return (data,)
        return (torch.clamp(data, low, high),)

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Builder:
    def build(attributes: Attributes) -> Operator:
        keep = bool(attributes.get("keepdims", 1))

        def run(x: Inputs) -> tuple[Tensor, ...]:
            data = first(x)
            axes = attributes.get("axes") if len(x) < 2 or x[1] is None else x[1].tolist()
            if not axes and attributes.get("noop_with_empty_axes", 0):
                return (data,)
            return (function(data, list(axes or range(data.ndim)), keep),)

        return run

    return build


def _softmax(attributes: Attributes) -> Operator:
    return unary(lambda x: x.softmax(attributes.get("axis", -1)))


def _layer_normalization(attributes: Attributes) -> Operator | None:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, scale, bias = three(x)
        return (F.layer_norm(data, data.shape[axis:], scale, bias, epsilon),)

    return run


def _batch_normalization(attributes: Attributes) -> Operator | None:
    if attributes.get("training_mode", 0):
        return None
    epsilon = attributes.get("epsilon", 1e-5)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, scale, bias, mean, variance = x
        assert data is not None
        return (F.batch_norm(data, mean, variance, scale, bias, False, 0.0, epsilon),)

    return run


def _group_normalization(attributes: Attributes) -> Operator:
    groups, epsilon = attributes.get("num_groups"), attributes.get("epsilon", 1e-5)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, scale, bias = three(x)
        return (F.group_norm(data, groups or data.shape[1], scale, bias, epsilon),)

    return run


def _prelu(attributes: Attributes) -> Operator:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        data, slope, _ = three(x)
        return (torch.where(data < 0, data * slope, data),)

    return run


def _cast(attributes: Attributes) -> Operator:
    kind = torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))).dtype
    return unary(lambda x: x.to(kind))


def _gelu(attributes: Attributes) -> Operator:
    approximate = attributes.get("approximate", b"none").decode()
    return unary(lambda x: F.gelu(x, approximate=approximate))


def _hard_sigmoid(attributes: Attributes) -> Operator:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return unary(lambda x: (alpha * x + beta).clamp(0.0, 1.0))


def _power(a: Tensor, b: Tensor) -> Tensor:
    return a.pow(b.to(a.dtype))


ELEMENTWISE: dict[str, Builder] = {
    "Relu": plain(unary(F.relu)),
    "LeakyRelu": lambda a: unary(lambda x: F.leaky_relu(x, a.get("alpha", 0.01))),
    "PRelu": _prelu,
    "Elu": lambda a: unary(lambda x: F.elu(x, a.get("alpha", 1.0))),
    "Clip": _clip,
    "Sigmoid": plain(unary(torch.sigmoid)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": plain(unary(F.hardswish)),
    "Tanh": plain(unary(torch.tanh)),
    "Mish": plain(unary(F.mish)),
    "Gelu": _gelu,
    "Erf": plain(unary(torch.erf)),
    "Softplus": plain(unary(F.softplus)),
    "Exp": plain(unary(torch.exp)),
    "Log": plain(unary(torch.log)),
    "Sqrt": plain(unary(torch.sqrt)),
    "Reciprocal": plain(unary(torch.reciprocal)),
    "Neg": plain(unary(torch.neg)),
    "Abs": plain(unary(torch.abs)),
    "Floor": plain(unary(torch.floor)),
    "Identity": plain(unary(lambda x: x)),
    "Add": plain(binary(torch.add)),
    "Sum": plain(binary(torch.add)),
    "Sub": plain(binary(torch.sub)),
    "Mul": plain(binary(torch.mul)),
    "Div": plain(binary(_divide)),
    "Pow": plain(binary(_power)),
    "Max": plain(binary(torch.maximum)),
    "Min": plain(binary(torch.minimum)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "Softmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "Cast": _cast,
}
"""By the name of the operator."""
