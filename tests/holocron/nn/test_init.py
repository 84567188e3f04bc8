import math

import pytest
import torch
from torch import nn

from holocron.nn.init import init_module


@pytest.mark.parametrize(
    ("nonlinearity", "gain"), [(None, 1), ("relu", math.sqrt(2)), ("leaky_relu", math.sqrt(2 / 1.0001))]
)
def test_convolutions_keep_the_scale_of_gradients(nonlinearity, gain):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Sequential(nn.GroupNorm(4, 64), nn.Linear(4, 4)))
    for norm in (net[1], net[2][0]):
        norm.weight.data.uniform_()
        norm.bias.data.uniform_()
    linear = net[2][1].weight.clone()
    init_module(net, nonlinearity)
    assert net[0].weight.std().item() == pytest.approx(gain / math.sqrt(64 * 9), rel=0.02)
    assert net[0].bias.eq(0).all()
    assert net[1].weight.eq(1).all()
    assert net[2][0].bias.eq(0).all()
    assert torch.equal(net[2][1].weight, linear)


def test_layers_without_parameters_and_unknown_activations():
    init_module(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()))
    conv = nn.Conv2d(3, 3, 1)
    before = conv.weight.clone()
    with pytest.raises(ValueError, match="swoosh"):
        init_module(conv, "swoosh")
    assert torch.equal(conv.weight, before)
