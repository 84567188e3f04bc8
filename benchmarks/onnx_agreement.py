"""Float32 ONNX against PyTorch on real images, for every builder that exports.

    python benchmarks/onnx_agreement.py [ARCH ...] [--size 224] [--json]

Weights are random, batch-norm statistics too, so that reparameterization has something to get wrong.
"""

from __future__ import annotations

import argparse
import copy
import json

import torch
from common import machine
from torch import nn

from calib import find_images, sample_folder
from export.source import from_module
from export.trace import trace
from export.verify import Comparison, VerificationImages, compare_networks
from holocron import models
from runtime.backends import open_session
from runtime.manifest import Preprocessing
from runtime.table import format_table

IMAGES = 16


def randomize_statistics(module: nn.Module, seed: int = 0) -> None:
    """Give every batch-norm statistics and affine parameters of a network that was trained."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(part.weight, 0.8, 1.2, generator=generator)
            nn.init.normal_(part.bias, 0, 0.1, generator=generator)


def relative_errors(name: str, size: int) -> tuple[float, float]:
    """Of the reparameterized module, and of its ONNX graph, against the module in training form."""
    torch.manual_seed(0)
    info = models.get_model_info(name)
    module = models.build_model(name).eval()
    randomize_statistics(module)
    preprocessing = Preprocessing((size, size), info.mean, info.std)
    images = VerificationImages(find_images(sample_folder(), IMAGES), preprocessing)

    def run(part):
        def outputs(batch):
            with torch.inference_mode():
                return {"logits": part(torch.from_numpy(batch)).numpy()}

        return outputs

    def error(ours, reference):
        comparison = Comparison()
        compare_networks(ours, lambda _, batch: reference(batch), images, comparison)
        return comparison.errors()["logits"]

    source = from_module(copy.deepcopy(module), name, preprocessing)
    session = open_session(trace(source.module, (size, size)).SerializeToString(), "onnxruntime")
    return error(run(source.module), run(module)), error(session.run, run(source.module))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archs", nargs="*", metavar="ARCH")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [(name, *relative_errors(name, args.size)) for name in args.archs or models.list_models("classification")]
    if args.json:
        print(json.dumps([{"arch": name, "reparameterized": a, "onnx": b} for name, a, b in rows]))
        return
    print(f"{machine()}; {IMAGES} photographs at {args.size}×{args.size}\n")
    headers = ["arch", "reparameterized against original", "ONNX against PyTorch"]
    print(format_table(headers, [[name, f"{a:.1e}", f"{b:.1e}"] for name, a, b in rows]))


if __name__ == "__main__":
    main()
