import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

mpl.use("Agg")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks here are tiny: threads would only wait for each other, long so on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def shown(monkeypatch):
    """The keyword arguments of each `plt.show`, whose figures are closed after the test."""
    calls = []
    monkeypatch.setattr(plt, "show", lambda **kwargs: calls.append(kwargs))
    yield calls
    plt.close("all")


@pytest.fixture(scope="session")
def digits():
    """Handwritten digits: 1200 training and 300 validation images of shape (1, 8, 8)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images[:1500, None], dtype=torch.float32) / 16
    labels = torch.tensor(data.target[:1500])
    return TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])


@pytest.fixture
def blobs():
    """Two loaders, unshuffled, of 4-dimensional points in 3 classes: 48 in batches of 4, and 18 in batches of 6."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(66) % 3
    points = torch.randn(66, 4, generator=generator, dtype=torch.float64) + 2 * labels[:, None]
    train = TensorDataset(points[:48], labels[:48])
    val = TensorDataset(points[48:], labels[48:])
    return DataLoader(train, 4), DataLoader(val, 6)


@pytest.fixture
def mlp():
    """Makes a small network in float64, the same every time."""

    def make(norm=False, dropout=0.0):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(8, 3),
        ).double()

    return make
