import numpy as np
import pytest
from PIL import Image

from runtime.manifest import Preprocessing, TensorSpec

PREPROCESSING = Preprocessing(size=(32, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@pytest.fixture
def preprocessing():
    return PREPROCESSING


@pytest.fixture
def photo():
    """Writes a reproducible picture to a path, whose folders it makes."""

    def write(path, seed=0, mode="RGB"):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


class FakeSession:
    """Doubles its input, and takes the ReLU of it, in numpy."""

    backend, device = "fake", "cpu"
    inputs = (TensorSpec("input", "float32", ("batch", 3, 32, 24)),)
    outputs = (
        TensorSpec("double", "float32", ("batch", 3, 32, 24)),
        TensorSpec("relu", "float32", ("batch", 3, 32, 24)),
    )

    def run(self, feeds):
        x = feeds["input"]
        return {"double": x * 2, "relu": np.maximum(x, 0)}

    def close(self):
        pass


@pytest.fixture
def session():
    return FakeSession()
