import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from holocron import optim
from holocron.optim.wrapper import Lookahead, Scout

# Learning rates of the right order: steps of LARS, LAMB and RaLars are relative to the norm of the weights.
ROSENBROCK = {
    optim.LARS: {"lr": 0.1, "momentum": 0.9},
    optim.LAMB: {"lr": 0.1},
    optim.RaLars: {"lr": 0.2},
    optim.TAdam: {"lr": 0.1, "betas": (0.9, 0.99)},
    optim.AdaBelief: {"lr": 0.2},
    optim.AdamP: {"lr": 0.2},
    optim.Adan: {"lr": 0.1},
    optim.AdEMAMix: {"lr": 0.1, "betas": (0.9, 0.999, 0.99), "alpha": 1.0},
}


def rosenbrock(point):
    return (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2


@pytest.mark.parametrize("optimizer_class", ROSENBROCK)
def test_minimizes_rosenbrock(optimizer_class):
    point = nn.Parameter(torch.tensor([-1.5, 2.0], dtype=torch.float64))
    optimizer = optimizer_class([point], **ROSENBROCK[optimizer_class])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        rosenbrock(point).backward()
        optimizer.step()
        scheduler.step()
    assert rosenbrock(point) < 0.02
    torch.testing.assert_close(point.detach(), torch.ones(2, dtype=torch.float64), rtol=0.3, atol=0)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def train_digits(digits, wrap):
    images, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = wrap(model.parameters())
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:1347]), labels[:1347]).backward()
        optimizer.step()
    return (model(images[1347:]).argmax(dim=1) == labels[1347:]).float().mean()


def test_trains_the_digits_model(digits, make):
    assert train_digits(digits, lambda params: make(params, lr=0.02)) > 0.88


@pytest.mark.parametrize("wrapper", [Lookahead, Scout])
def test_wrappers_train_the_digits_model(digits, wrapper):
    assert train_digits(digits, lambda params: wrapper(torch.optim.AdamW(params, lr=0.02))) > 0.88
