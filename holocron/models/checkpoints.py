"""What is known about a set of published weights: where it is, what it was measured at, how its inputs are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torchvision.models import ResNet50_Weights
from torchvision.transforms import InterpolationMode

__all__ = [
    "IMAGENETTE_CATEGORIES",
    "IMAGENET_CATEGORIES",
    "Checkpoint",
    "Dataset",
    "Evaluation",
    "LoadingMeta",
    "Metric",
    "PreProcessing",
    "TrainingRecipe",
]


class Metric(Enum):
    """Figure of merit of an evaluation, between 0 and 1."""

    TOP1_ACC = "top1-accuracy"
    TOP5_ACC = "top5-accuracy"


class Dataset(Enum):
    """Data set on which a checkpoint was evaluated."""

    IMAGENET1K = "imagenet-1k"
    IMAGENETTE = "imagenette"
    CIFAR10 = "cifar10"


IMAGENETTE_CATEGORIES: tuple[str, ...] = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)

# The usual order of the 1000 classes, by the sorted identifiers of their WordNet synsets, with torchvision's names.
IMAGENET_CATEGORIES: tuple[str, ...] = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class TrainingRecipe:
    """How the weights were trained, as far as that was recorded.

    Attributes:
        commit: hash of the commit of the training code, or None where it is not known.
        script: path of the training script at that commit, or None.
        args: command-line arguments of that script, or None.
    """

    commit: str | None = None
    script: str | None = None
    args: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What the weights reach.

    Attributes:
        dataset: the data set whose validation split was used.
        results: value of each metric, between 0 and 1.
    """

    dataset: Dataset
    # A dictionary has no hash; the other fields tell two checkpoints apart well enough for one.
    results: Mapping[Metric, float] = field(hash=False)


@dataclass(frozen=True)
class LoadingMeta:
    """Where the weights are and what they fit.

    Attributes:
        url: address of the file.
        sha256: hexadecimal digest of the file, which is what identifies it.
        size: announced size of the file in bytes, for display.
        arch: name of the builder, as in :func:`holocron.models.list_models`.
        num_params: number of parameters of the model.
        categories: names of the classes, in the order of the model's outputs.
    """

    url: str
    sha256: str
    size: int
    arch: str
    num_params: int
    categories: tuple[str, ...]


@dataclass(frozen=True)
class PreProcessing:
    """What happens to an image before the model sees it.

    Attributes:
        input_shape: (C, H, W) of the model's input.
        mean: per-channel mean subtracted after scaling to [0, 1].
        std: per-channel standard deviation divided by.
        interpolation: filter used to resize.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: InterpolationMode = InterpolationMode.BILINEAR


@dataclass(frozen=True)
class Checkpoint:
    """A published set of weights.

    Attributes:
        evaluation: what it was measured at.
        meta: where it is and what it fits.
        pre_processing: what its inputs went through.
        recipe: how it was trained.
    """

    evaluation: Evaluation
    meta: LoadingMeta
    pre_processing: PreProcessing
    recipe: TrainingRecipe = TrainingRecipe()


_RELEASES = "https://github.com/frgfm/Holocron/releases/download"


def imagenette_checkpoint(
    arch: str, *, release: str, sha256: str, size: int, num_params: int, top1: float, top5: float
) -> Checkpoint:
    """Describe weights trained on Imagenette at 224 × 224 and published with a release of Holocron.

    Args:
        arch: name of the builder.
        release: tag of the release, for example ``v0.2.1``.
        sha256: hexadecimal digest of the file; its first eight digits are part of the file's name.
        size: size of the file in bytes.
        num_params: number of parameters of the model.
        top1: top-1 accuracy on the validation split, between 0 and 1.
        top5: top-5 accuracy, likewise.

    Returns:
        the checkpoint's description
    """
    return _release_checkpoint(
        Dataset.IMAGENETTE, IMAGENETTE_CATEGORIES, arch, release, sha256, size, num_params, top1, top5
    )


def imagenet_checkpoint(
    arch: str, *, release: str, sha256: str, size: int, num_params: int, top1: float, top5: float
) -> Checkpoint:
    """Describe weights trained on ImageNet-1k at 224 × 224 and published with a release of Holocron.

    Args:
        arch: name of the builder.
        release: tag of the release, for example ``v0.1.2``.
        sha256: hexadecimal digest of the file; its first eight digits are part of the file's name.
        size: size of the file in bytes, as it was announced.
        num_params: number of parameters of the model.
        top1: top-1 accuracy on the validation split, between 0 and 1.
        top5: top-5 accuracy, likewise.

    Returns:
        the checkpoint's description
    """
    return _release_checkpoint(
        Dataset.IMAGENET1K, IMAGENET_CATEGORIES, arch, release, sha256, size, num_params, top1, top5
    )


def _release_checkpoint(
    dataset: Dataset,
    categories: tuple[str, ...],
    arch: str,
    release: str,
    sha256: str,
    size: int,
    num_params: int,
    top1: float,
    top5: float,
) -> Checkpoint:
    return Checkpoint(
        evaluation=Evaluation(dataset, {Metric.TOP1_ACC: top1, Metric.TOP5_ACC: top5}),
        meta=LoadingMeta(
            url=f"{_RELEASES}/{release}/{arch}_224-{sha256[:8]}.pth",
            sha256=sha256,
            size=size,
            arch=arch,
            num_params=num_params,
            categories=categories,
        ),
        pre_processing=PreProcessing(input_shape=(3, 224, 224)),
    )
