import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW

from holocron.optim.wrapper import Lookahead
from holocron.trainer.updates import update_weights


def scaled_gradients(scaler, wrap=None):
    """A parameter with the scaled gradient (3, 4), of norm 5, and its optimizer."""
    param = nn.Parameter(torch.zeros(2))
    optimizer = SGD([param], lr=1.0) if wrap is None else wrap([param])
    scaler.scale((param * torch.tensor([3.0, 4.0])).sum()).backward()
    return param, optimizer


@pytest.fixture
def scaler():
    # What a GPU needs with float16 works the same on CPU.
    return GradScaler("cpu", init_scale=2.0**10)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"grad_clip": None}, (-3, -4)),
        ({"grad_clip": 10.0}, (-3, -4)),
        ({"grad_clip": 2.5}, (-1.5, -2)),
        ({"grad_clip": None, "rescale": 2.0}, (-6, -8)),
        ({"grad_clip": 5.0, "rescale": 2.0}, (-3, -4)),
    ],
)
def test_clips_what_the_gradient_is_without_the_scale(scaler, arguments, expected):
    param, optimizer = scaled_gradients(scaler)
    assert update_weights(optimizer, scaler, **arguments)
    assert param.tolist() == pytest.approx(expected, rel=1e-4)
    assert param.grad is None


@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_overflow_leaves_the_weights(scaler, grad_clip):
    param, optimizer = scaled_gradients(scaler)
    param.grad[0] = math.inf
    assert not update_weights(optimizer, scaler, grad_clip)
    assert param.tolist() == [0, 0]
    assert param.grad is None
    assert scaler.get_scale() == 2.0**9
    scaler.scale(param.sum()).backward()
    assert update_weights(optimizer, scaler, grad_clip)


@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_wrapped_optimizer(scaler, grad_clip):
    param, optimizer = scaled_gradients(scaler, lambda params: Lookahead(AdamW(params, lr=0.1), sync_period=1))
    assert update_weights(optimizer, scaler, grad_clip)
    assert param.tolist() == pytest.approx([-0.05, -0.05], rel=1e-4)
