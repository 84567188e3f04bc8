import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holocron import nn
from holocron.nn import functional as F


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 10), st.floats(0, 1), st.integers(0, 999))
def test_what_is_dropped_is_a_union_of_blocks(h, w, block_size, p, seed):
    torch.manual_seed(seed)
    out = F.dropblock2d(torch.ones(2, 3, h, w), p, block_size)
    dropped = (out == 0).float()
    kept_values = out[out != 0]
    if kept_values.numel():
        # What is kept is scaled by one over its fraction, the same everywhere.
        torch.testing.assert_close(kept_values, torch.full_like(kept_values, out.numel() / kept_values.numel()))
    block = (min(block_size, h), min(block_size, w))
    # A morphological opening by the block leaves a union of blocks as it is.
    eroded = -torch.nn.functional.max_pool2d(-dropped, block, stride=1)
    margins = (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1)
    opened = torch.nn.functional.max_pool2d(torch.nn.functional.pad(eroded, margins), block, stride=1)
    assert torch.equal(opened, dropped)


@pytest.mark.parametrize("block_size", [1, 3, 7])
def test_dropped_fraction(block_size):
    torch.manual_seed(0)
    out = F.dropblock2d(torch.ones(64, 8, 28, 28), 0.1, block_size)
    # Seeds draw the paper's rate; overlaps of blocks take a little of it away.
    gamma = 0.1 * 28**2 / (block_size**2 * (29 - block_size) ** 2)
    assert 0.07 < (out == 0).float().mean().item() < 0.105
    assert gamma * (29 - block_size) ** 2 * block_size**2 / 28**2 == pytest.approx(0.1)
    torch.testing.assert_close(out.mean(), torch.tensor(1.0))


def test_masks_differ_between_images_and_channels():
    torch.manual_seed(0)
    dropped = F.dropblock2d(torch.ones(2, 2, 20, 20), 0.3, 3).flatten(0, 1) == 0
    assert len({tuple(mask.flatten().tolist()) for mask in dropped}) == 4


@pytest.mark.parametrize("module", [nn.DropBlock2d(0.5, 3).eval(), nn.DropBlock2d(0.0, 3)], ids=["eval", "p=0"])
def test_identity(module):
    x = torch.randn(2, 3, 8, 8)
    assert module(x) is x


def test_inplace_and_gradient():
    x = torch.ones(2, 3, 16, 16, requires_grad=True)
    torch.manual_seed(0)
    out = nn.DropBlock2d(0.3, 3)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out)  # the mask itself, as x is all ones
    torch.manual_seed(0)
    y = torch.ones(2, 3, 16, 16)
    assert nn.DropBlock2d(0.3, 3, inplace=True)(y) is y
    assert torch.equal(y, out)


def test_everything_dropped_is_zero_and_nothing_to_drop_is_fine():
    assert F.dropblock2d(torch.ones(1, 1, 4, 4), 1.0, 4).eq(0).all()
    assert F.dropblock2d(torch.ones(0, 3, 4, 4), 0.5, 2).shape == (0, 3, 4, 4)


def test_half_precision_counts_beyond_its_range():
    out = F.dropblock2d(torch.ones(4, 64, 32, 32, dtype=torch.float16), 0.1, 3)
    assert out.isfinite().all()
    assert out.float().mean().item() == pytest.approx(1, abs=1e-2)


def test_refusals():
    x = torch.ones(1, 1, 4, 4)
    for args, match in (((x, 1.1, 3), "drop_prob"), ((x, 0.1, 0), "block_size"), ((x[0], 0.1, 3), "x has")):
        with pytest.raises(ValueError, match=match):
            F.dropblock2d(*args)
    with pytest.raises(ValueError, match="p has"):
        nn.DropBlock2d(-0.1)
    with pytest.raises(ValueError, match="block_size"):
        nn.DropBlock2d(block_size=0)
    assert repr(nn.DropBlock2d()) == "DropBlock2d(p=0.1, block_size=7, inplace=False)"
