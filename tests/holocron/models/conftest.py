import json
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep every download of a test in a folder of its own, and off any proxy."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture(scope="session")
def compat_models():
    """Facts about the published release: parameters, signature, digest of the state dict's keys, golden answers."""
    return json.loads((DATA / "compat_models.json").read_text())


@pytest.fixture(scope="session")
def compat_checkpoints():
    """The published checkpoint entries."""
    return json.loads((DATA / "compat_checkpoints.json").read_text())
