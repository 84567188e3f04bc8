"""What an interrupted quantization has done so far, so that the next one goes on from there.

A folder of the user's cache, named after everything that the result depends on. A layer is a file of its own, written
under another name and renamed, so that one that is there is whole. The folder goes when the export is finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from calib import CalibrationSettings, SchemeCalibration

from .layerwise import LayerOutcome, QuantizedLayer

_VERSION = 1
"""Of the method: layers that another one rounded are not taken over."""


class RoundingState:
    """Layers on disk.

    Args:
        folder: made when the first layer is written
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def layers(self) -> dict[str, tuple[QuantizedLayer, LayerOutcome]]:
        """What an earlier run has rounded, by the name of the layer's output; what cannot be read is no layer."""
        found = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as data:
                    outcome = LayerOutcome(**json.loads(str(data["outcome"])))
                    bias = torch.from_numpy(data["bias"]) if "bias" in data else None
                    layer = QuantizedLayer(torch.from_numpy(data["codes"]), torch.from_numpy(data["scale"]), bias)
            except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
                continue
            found[outcome.name] = layer, outcome
        return found

    def add(self, layer: QuantizedLayer, outcome: LayerOutcome) -> None:
        """Keep a layer, where there is room for it: a quantization that is not interrupted needs none of this.

        Args:
            layer: with rounded weights
            outcome: what rounding it did
        """
        with contextlib.suppress(OSError):
            self._write(layer, outcome)

    def _write(self, layer: QuantizedLayer, outcome: LayerOutcome) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {"codes": layer.codes.numpy(), "scale": layer.scale.numpy()}
        if layer.bias is not None:
            arrays["bias"] = layer.bias.numpy()
        path = self.folder / f"{hashlib.sha256(outcome.name.encode()).hexdigest()[:32]}.npz"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, outcome=np.array(json.dumps(asdict(outcome))), **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    def remove(self) -> None:
        """Delete all layers."""
        shutil.rmtree(self.folder, ignore_errors=True)


def rounding_state(
    model: str, images: str, scheme: str, settings: CalibrationSettings, calibration: SchemeCalibration
) -> RoundingState:
    """Where the layers of a quantization are kept while it runs.

    Args:
        model: SHA-256 of the float network
        images: digest of the calibration images
        scheme: `"cpu"` or `"trt"`
        settings: what is asked
        calibration: ranges and factors that the layers are rounded for

    Returns:
        a folder of the user's cache
    """
    facts = [_VERSION, model, images, scheme, asdict(settings), asdict(calibration), torch.__version__]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return RoundingState(_cache_folder() / "quantization" / digest)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "holocron-edge"
