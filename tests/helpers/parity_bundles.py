"""Bundles of every task, input and precision, that several runtimes are to answer alike."""

import fcntl
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from PIL import Image
from tiny_networks import TinyBoxes, TinyNet, TinySegmenter
from torch import nn

from calib import find_images, sample_folder
from export import Tolerances, export_model
from holocron import models
from runtime.manifest import Preprocessing
from runtime.preprocess import Preprocessor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUISH = Preprocessing((24, 32), MEAN, STD)
PAD = Preprocessing((24, 32), MEAN, STD, resize="pad", pad_mode="reflect", interpolation="bicubic")
MAX_FRAME = (600, 800)
"""Height and width of the largest frame that networks with frame input take."""
BOXES = {"score_threshold": 0.2, "iou_threshold": 0.5, "max_detections": 96}


@dataclass(frozen=True)
class BundleSpec:
    """What a bundle is exported from."""

    task: str
    network: object
    """Makes the network, with random weights."""
    preprocessing: Preprocessing
    precisions: tuple = ("fp32",)
    """Those that are compared."""
    options: dict = field(default_factory=dict)
    """Of `export_model`."""


def _frames(**options):
    return {"input": "frame", "max_frame": MAX_FRAME} | options


TINY = {
    "logits": BundleSpec("classification", TinyNet, SQUISH, ("fp32", "fp16", "int8.cpu")),
    "probabilities": BundleSpec("classification", TinyNet, PAD, options={"probabilities": True}),
    "top_k": BundleSpec("classification", TinyNet, SQUISH, options={"top_k": 3}),
    "frames": BundleSpec("classification", TinyNet, SQUISH, ("fp32", "int8.cpu"), _frames()),
    "frames_bgr": BundleSpec("classification", TinyNet, PAD, options=_frames(channels="bgr")),
    "boxes": BundleSpec("detection", TinyBoxes, PAD, ("fp32", "int8.cpu"), BOXES),
    "boxes_of_frames": BundleSpec("detection", TinyBoxes, PAD, options=_frames(**BOXES)),
    "scores": BundleSpec("segmentation", TinySegmenter, PAD, ("fp32", "int8.cpu")),
    "class_map": BundleSpec("segmentation", TinySegmenter, SQUISH, options={"class_map": True}),
    "class_map_of_frames": BundleSpec("segmentation", TinySegmenter, SQUISH, options=_frames(class_map=True)),
}
"""Networks that are exported in a second."""

_A0 = partial(models.repvgg_a0, pretrained=False, num_classes=50)
_UNET = partial(models.unet_rexnet13, pretrained_backbone=False, num_classes=6)
_YOLO = partial(models.yolov2, pretrained_backbone=False, num_classes=7)
_SQUARE = Preprocessing((224, 224), MEAN, STD, interpolation="bicubic")
_WIDE = Preprocessing((96, 128), MEAN, STD)
_LETTERBOX = Preprocessing((160, 192), MEAN, STD, resize="pad")
REAL = {
    "repvgg_a0": BundleSpec("classification", _A0, _SQUARE, ("fp32", "int8.cpu")),
    "repvgg_a0_of_frames": BundleSpec("classification", _A0, _SQUARE, options=_frames(channels="bgr")),
    "unet_rexnet13": BundleSpec("segmentation", _UNET, _WIDE),
    "unet_rexnet13_of_frames": BundleSpec("segmentation", _UNET, _WIDE, options=_frames(class_map=True)),
    "yolov2": BundleSpec("detection", _YOLO, _LETTERBOX, options=BOXES),
    "yolov2_of_frames": BundleSpec("detection", _YOLO, _LETTERBOX, options=_frames(**BOXES)),
}
"""Networks that people use, too large for the tests of every commit."""


def photographs():
    """RGB arrays of unequal sizes, none larger than `MAX_FRAME`."""
    images = []
    sizes = [None, (57, 431), (640, 36), (24, 32), (599, 800), None]
    for path, size in zip(find_images(sample_folder())[::7], sizes, strict=True):
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            images.append(np.asarray(rgb if size is None else rgb.resize(size[::-1])))
    return [image for image in images if image.shape[0] <= MAX_FRAME[0] and image.shape[1] <= MAX_FRAME[1]]


@contextmanager
def locked(path):
    """Have a file's lock: one process at a time has it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def exported(root, name):
    """Folder of a bundle, which is made unless it is there already, by this process or another."""
    folder = root / name
    with locked(root / f"{name}.lock"):
        if not folder.is_dir():  # an export that fails leaves none
            _export((TINY | REAL)[name], folder)
    return folder


def _export(spec, folder):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = spec.network()
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        _set_apart(network, spec.preprocessing)
    options = {"calib": sample_folder(), "calib_samples": 8, "effort": "fast", "verify_samples": 2}
    options["tolerances"] = Tolerances(int8_agreement=0)  # of weights that nobody trained
    options |= {"int8": "int8.cpu" in spec.precisions, "fp16": "fp16" in spec.precisions} | spec.options
    export_model(network.eval(), folder, task=spec.task, preprocessing=spec.preprocessing, **options)


def _set_apart(network, preprocessing):
    """Let answers depend on the image, which those of random weights hardly do.

    Layers are normalized by what they see of photographs, and the last one's differences are enlarged.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            module.reset_running_stats()
    network.eval()
    for module in network.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    preprocess = Preprocessor(preprocessing)
    images = torch.from_numpy(np.stack([preprocess(path) for path in find_images(sample_folder())[::4]]))
    with torch.inference_mode():
        (network.raw_outputs if hasattr(network, "raw_outputs") else network)(images)
        *_, last = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
        last.weight *= 8
