"""Weights of a classifier, put into the backbone of a detector."""

from torch import nn

from holocron.models.checkpoints import Checkpoint
from holocron.models.download import download
from holocron.models.errors import CheckpointError, DownloadError
from holocron.models.loading import load_state_dict, load_weights

__all__ = ["load_backbone"]

_FEATURES = "features."


def load_backbone(backbone: nn.Module, checkpoint: Checkpoint, progress: bool = True) -> None:
    """Download the weights of a classifier, and load those of its feature extractor into a backbone.

    Args:
        backbone: a body as the classifier has it under ``features``; its batch normalizations may be frozen.
        checkpoint: published weights of the classifier.
        progress: whether to draw a progress bar on the standard error stream.

    Raises:
        DownloadError: if the weights cannot be fetched, or are not those that were published.
        CheckpointError: if they cannot be read, or do not fit the backbone.
    """
    meta = checkpoint.meta
    try:
        path = download(meta.url, sha256=meta.sha256, size=meta.size, progress=progress)
        # Frozen batch normalization does not count batches.
        features = {
            key.removeprefix(_FEATURES): value
            for key, value in load_state_dict(path).items()
            if key.startswith(_FEATURES) and not key.endswith("num_batches_tracked")
        }
        load_weights(backbone, features, source=f"the backbone of {path}")
    except (DownloadError, CheckpointError) as error:
        raise type(error)(f"{error}. To start from an untrained backbone, pass pretrained_backbone=False") from error
