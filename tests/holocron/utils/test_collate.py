import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from holocron.utils.data import Mixup


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_alpha(alpha):
    with pytest.raises(ValueError, match="alpha"):
        Mixup(10, alpha)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0])
def test_num_classes(num_classes):
    with pytest.raises(ValueError, match="num_classes"):
        Mixup(num_classes)


def test_without_mixing():
    x, target = torch.rand(5, 3, 4, 4), torch.tensor([0, 3, 1, 2, 2])
    mixed, probs = Mixup(4, alpha=0)(x, target)
    assert torch.equal(mixed, x)
    assert torch.equal(probs, torch.eye(4)[target])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_inputs_and_targets_are_mixed_alike(alpha, dtype):
    torch.manual_seed(0)
    mix = Mixup(8, alpha)
    # Each input is the one-hot of its class: what holds for the inputs holds for the targets.
    targets = torch.arange(8)
    inputs = torch.eye(8, dtype=dtype)
    weights = []
    for _ in range(200):
        mixed, probs = mix(inputs, targets)
        assert mixed.dtype == probs.dtype == dtype
        assert torch.equal(mixed, probs)
        torch.testing.assert_close(probs.sum(1), torch.ones(8, dtype=dtype))
        rows = probs.float()
        off = [row[row != 0] for row in rows]
        weights.append(rows.diagonal().min().item())
        assert all(len(row) <= 2 for row in off)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); the diagonal has it, or 1 where a sample met itself.
    weights = torch.tensor(weights)
    assert weights.mean().item() == pytest.approx(0.5, abs=0.1)
    assert weights.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.35)


def test_other_targets():
    torch.manual_seed(0)
    inputs = torch.rand(4, 2)
    mixed, probs = Mixup(1, 0.0)(inputs, torch.tensor([0, 1, 1, 0]))
    assert probs.tolist() == [[0.0], [1.0], [1.0], [0.0]]
    soft = torch.rand(4, 3)
    mixed, probs = Mixup(3, 0.0)(inputs, soft)
    assert torch.equal(mixed, inputs)
    assert torch.equal(probs, soft)


def test_refuses():
    mix = Mixup(3)
    with pytest.raises(TypeError, match="uint8"):
        mix(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    for targets in (torch.tensor([0, 3]), torch.tensor([-1, 1]), torch.rand(2)):
        with pytest.raises(ValueError, match="num_classes=3"):
            mix(torch.zeros(2, 3), targets)
    for targets in (torch.tensor([0, 1, 2]), torch.rand(2, 4)):
        with pytest.raises(ValueError, match="shape"):
            mix(torch.zeros(2, 3), targets)


def test_follows_the_torch_seed():
    mix = Mixup(4, 1.0)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(mix(torch.eye(4), torch.arange(4))[0])
    assert torch.equal(*results)


def test_collates_batches():
    data = TensorDataset(torch.rand(10, 3, 4, 4), torch.arange(10) % 5)
    mix = Mixup(5)
    batches = list(DataLoader(data, 4, collate_fn=lambda batch: mix(*default_collate(batch))))
    assert [(tuple(x.shape), tuple(target.shape)) for x, target in batches] == [
        ((4, 3, 4, 4), (4, 5)),
        ((4, 3, 4, 4), (4, 5)),
        ((2, 3, 4, 4), (2, 5)),
    ]
