"""Accuracy of every ONNX artefact of a bundle on labelled images, with `runtime` alone: no torch, no onnx.

    python examples/evaluate_bundle.py BUNDLE IMAGES

IMAGES has a folder a class, named as the bundle's labels. Prints a JSON object: file name to share of right answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import runtime
from runtime.manifest import read_manifest


def main() -> None:
    """Evaluate the bundle that the command line names."""
    bundle, images = Path(sys.argv[1]), Path(sys.argv[2])
    paths = sorted(images.glob("*/*"))
    accuracy = {}
    for artefact in read_manifest(bundle).artefacts:
        if artefact.kind != "onnx":
            continue
        with runtime.load(bundle, precision=artefact.variant, backend="onnxruntime") as model:
            answers = model(paths)
        accuracy[artefact.file] = sum(a.label == p.parent.name for a, p in zip(answers, paths, strict=True)) / len(
            paths
        )
    assert "torch" not in sys.modules
    json.dump(accuracy, sys.stdout)


if __name__ == "__main__":
    main()
