"""Every layer and loss goes through `torch.export` to ONNX, and ONNX Runtime gives the same answer."""

import inspect

import numpy as np
import onnxruntime
import pytest
import torch

from holocron import nn

IMAGE = (2, 8, 9, 11)
LABELS = torch.tensor([[0, 3, 1], [2, -100, 4]])


def image(*shape):
    return torch.randn(shape or IMAGE)


# Layer, and the inputs it is traced with
TABLE = {
    "HardMish": lambda: (nn.HardMish(), image()),
    "HardMish-inplace": lambda: (nn.HardMish(inplace=True), image()),
    "NLReLU": lambda: (nn.NLReLU(2.0), image()),
    "NLReLU-inplace": lambda: (nn.NLReLU(2.0, inplace=True), image()),
    "FReLU": lambda: (nn.FReLU(8), image()),
    "NormConv2d": lambda: (nn.NormConv2d(8, 6, 3, padding=1, stride=2), image()),
    "NormConv2d-groups": lambda: (nn.NormConv2d(8, 6, 3, dilation=2, groups=2, padding_mode="reflect"), image()),
    "Add2d": lambda: (nn.Add2d(8, 6, 3, padding=1, stride=2), image()),
    "Add2d-normalized": lambda: (nn.Add2d(8, 6, 3, groups=2, normalize_slices=True), image()),
    "SlimConv2d": lambda: (nn.SlimConv2d(8, 3, padding=1), image()),
    "PyConv2d": lambda: (nn.PyConv2d(8, 16, 3, num_levels=3, padding=1), image()),
    "Involution2d": lambda: (nn.Involution2d(8, 3, padding=1, groups=2), image()),
    "Involution2d-stride": lambda: (nn.Involution2d(8, 3, padding=1, stride=2, reduction_ratio=2), image()),
    "DropBlock2d": lambda: (nn.DropBlock2d(), image()),
    "ConcatDownsample2d": lambda: (nn.ConcatDownsample2d(2), image(2, 3, 8, 6)),
    "GlobalAvgPool2d": lambda: (nn.GlobalAvgPool2d(), image()),
    "GlobalMaxPool2d": lambda: (nn.GlobalMaxPool2d(flatten=True), image()),
    "BlurPool2d": lambda: (nn.BlurPool2d(8), image()),
    "SPP": lambda: (nn.SPP([3, 5]), image()),
    "ZPool": lambda: (nn.ZPool(), image()),
    "SAM": lambda: (nn.SAM(8), image()),
    "DimAttention": lambda: (nn.DimAttention(2), image()),
    "TripletAttention": lambda: (nn.TripletAttention(), image()),
    "LambdaLayer": lambda: (nn.LambdaLayer(8, 8, 4, r=3), image()),
    "LambdaLayer-global": lambda: (nn.LambdaLayer(8, 8, 4, n=99, dim_u=2), image()),
    "Loss": None,  # has no forward pass of its own
    "FocalLoss": lambda: (nn.FocalLoss(weight=[1, 2, 3, 4, 5]), image(2, 5, 3), LABELS),
    "PolyLoss": lambda: (nn.PolyLoss(), image(2, 5, 3), LABELS),
    "ComplementCrossEntropy": lambda: (nn.ComplementCrossEntropy(), image(2, 5, 3), LABELS),
    "MultiLabelCrossEntropy": lambda: (nn.MultiLabelCrossEntropy(), image(2, 5), torch.rand(2, 5)),
    "MutualChannelLoss": lambda: (nn.MutualChannelLoss(), image(), torch.tensor([1, 2])),
    "DiceLoss": lambda: (nn.DiceLoss(), torch.rand(2, 5, 3), LABELS),
    "ClassBalancedWrapper": lambda: (
        nn.ClassBalancedWrapper(nn.FocalLoss(), torch.tensor([1, 10, 20, 3, 4])),
        image(2, 5, 3),
        LABELS,
    ),
}
# Second variants, and graphs whose operators another one has too, are left to the long run.
SLOW = {
    "HardMish-inplace",
    "NLReLU-inplace",
    "NormConv2d-groups",
    "Add2d-normalized",
    "Involution2d-stride",
    "LambdaLayer-global",
    "DimAttention",
    "ZPool",
    "SAM",
    "GlobalMaxPool2d",
    "BlurPool2d",
    "PolyLoss",
    "MultiLabelCrossEntropy",
    "MutualChannelLoss",
    "DiceLoss",
    "ClassBalancedWrapper",
}


def test_table_lists_every_module():
    modules = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name))}
    assert {name.split("-")[0] for name in TABLE} == modules


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TABLE if TABLE[name]]
)
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_gives_the_same_answer(name):
    torch.manual_seed(0)
    module, *inputs = TABLE[name]()
    module = module.eval()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        expected = module(*(tensor.clone() for tensor in inputs)).numpy()

    traced = torch.export.export(module, tuple(tensor.clone() for tensor in inputs))
    model = torch.onnx.export(traced, verbose=False).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    # An in-place layer may return the overwritten input beside the result.
    actual = session.run(None, feeds)[-1]
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)
