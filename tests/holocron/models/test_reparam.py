"""Each way of folding, against running the unfolded layers in float64."""

import pytest
import torch
from torch import nn

from holocron.models.reparam import BranchSum, fuse_branches, fuse_conv_bn, reparametrize


def conv_bn(*args, **kwargs):
    return nn.Sequential(nn.Conv2d(*args, **kwargs), nn.BatchNorm2d(args[1]))


def settle(module):
    """Give every normalization statistics of its own, as training would."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 3)
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return module.double().eval()


BRANCHES = {
    "repvgg": lambda: [conv_bn(8, 8, 3, padding=1, bias=False), conv_bn(8, 8, 1, bias=False), nn.BatchNorm2d(8)],
    "strided": lambda: [conv_bn(4, 6, 3, 2, 1), conv_bn(4, 6, 1, 2)],
    "grouped": lambda: [conv_bn(8, 8, 3, padding=1, groups=4), conv_bn(8, 8, 1, groups=4), nn.BatchNorm2d(8)],
    "depthwise": lambda: [nn.BatchNorm2d(6), conv_bn(6, 6, 1, groups=6), conv_bn(6, 6, 7, padding=3, groups=6)],
    "pointwise": lambda: [nn.BatchNorm2d(6), conv_bn(6, 6, 1), conv_bn(6, 6, 1)],
    "bare": lambda: [nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1)],
    "asymmetric": lambda: [conv_bn(3, 5, (3, 5), padding=(1, 2)), conv_bn(3, 5, (1, 3), padding=(0, 1))],
    "dilated": lambda: [conv_bn(4, 4, 3, padding=2, dilation=2), conv_bn(4, 4, 1), nn.BatchNorm2d(4)],
    "valid": lambda: [conv_bn(4, 4, 5, padding=1), conv_bn(4, 4, 3)],
    "no_affine": lambda: [conv_bn(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)],
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_fused_sum_equals_the_sum(kind):
    block = settle(BranchSum(BRANCHES[kind]()))
    with torch.no_grad():
        # The sum that `forward` makes is part of what is tested: here it is spelled out.
        images = torch.randn(
            2, next(b for b in block.modules() if isinstance(b, nn.Conv2d)).in_channels, 9, 12
        ).double()
        expected = torch.stack([branch(images) for branch in block]).sum(0)
        assert torch.allclose(block(images), expected, rtol=1e-12, atol=1e-12)
        fused = block.fuse()
        assert torch.allclose(fused(images), expected, rtol=1e-10, atol=1e-10)
    assert isinstance(fused, nn.Conv2d)
    assert not fused.training
    assert fused.bias is not None


def test_one_rounding_only():
    """In float16 the fused kernel is the rounding of the exact one, not the result of float16 arithmetic."""
    block = BranchSum([conv_bn(4, 4, 3, padding=1), conv_bn(4, 4, 1), nn.BatchNorm2d(4)])
    settle(block).half()
    kernel = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    for branch in block:
        conv, bn = branch if isinstance(branch, nn.Sequential) else (None, branch)
        scale = (bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()).detach()
        if conv is None:
            kernel[range(4), range(4), 1, 1] += scale
        else:
            pad = (3 - conv.kernel_size[0]) // 2
            kernel += nn.functional.pad(conv.weight.detach().double(), [pad] * 4) * scale[:, None, None, None]
    fused = block.fuse()
    assert fused.weight.dtype == torch.float16
    assert torch.equal(fused.weight.detach(), kernel.half())


def test_conv_bn():
    layers = settle(conv_bn(6, 8, 3, stride=2, padding=1, dilation=2, groups=2, padding_mode="reflect"))
    images = torch.randn(2, 6, 11, 10).double()
    fused = fuse_conv_bn(layers[0], layers[1])
    assert torch.allclose(fused(images), layers(images), rtol=1e-10, atol=1e-10)
    assert (fused.stride, fused.dilation, fused.groups, fused.padding_mode) == ((2, 2), (2, 2), 2, "reflect")


def test_fusing_leaves_the_random_state_alone():
    block = settle(BranchSum(BRANCHES["repvgg"]()))
    state = torch.get_rng_state()
    block.fuse()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ([nn.BatchNorm2d(4)], "none of which has a convolution"),
        ([], "none of which has a convolution"),
        ([nn.Conv2d(4, 4, 1), nn.ReLU()], "a branch made of ReLU"),
        ([nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))], "a branch made of BatchNorm2d \\+ Conv2d"),
        ([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, padding=1)], "do not line up"),
        ([nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 1)], "do not line up"),
        ([nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)], "do not line up"),
        ([nn.Conv2d(4, 4, 5, padding=4, dilation=2), nn.Conv2d(4, 4, 3, padding=1)], "do not line up"),
        ([nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Conv2d(4, 4, 1)], "padding_mode='circular'"),
        ([nn.Conv2d(4, 4, 4, padding=2), nn.Conv2d(4, 4, 1)], "cannot be centred"),
        ([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)], "keeps the spatial size"),
        ([nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)], "an identity over 4 channels"),
        ([nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(4)], "an identity over 4 channels"),
        ([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)], "track_running_stats=False"),
        ([nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8))], "over 8 channels cannot follow"),
    ],
)
def test_refuses_what_is_not_one_convolution(branches, message):
    for branch in branches:
        branch.eval()
    with pytest.raises(ValueError, match=message):
        fuse_branches(branches)


def test_refuses_training_mode():
    layers = conv_bn(4, 4, 1)
    with pytest.raises(ValueError, match="training mode"):
        fuse_conv_bn(layers[0], layers[1])
    with pytest.raises(ValueError, match="training mode"):
        fuse_branches([layers])


def test_an_error_leaves_the_model_whole():
    model = nn.Sequential(BranchSum(BRANCHES["repvgg"]()), BranchSum([nn.Conv2d(8, 8, 1), nn.ReLU()])).eval()
    with pytest.raises(ValueError, match="ReLU"):
        reparametrize(model)
    assert all(isinstance(block, BranchSum) for block in model)


def test_a_model_without_blocks_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    keys = list(model.state_dict())
    reparametrize(model)
    assert list(model.state_dict()) == keys
