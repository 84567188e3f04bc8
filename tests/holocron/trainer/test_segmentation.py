import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from holocron.trainer import SegmentationTrainer, Trainer


class Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.shift


def trainer_of(logits, targets, num_classes, batch_size=2, model=None, **kwargs):
    loader = DataLoader(TensorDataset(logits, targets), batch_size)
    model = Identity() if model is None else model
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    return SegmentationTrainer(
        model, loader, loader, criterion, SGD(model.parameters(), 0.1), num_classes=num_classes, **kwargs
    )


def reference(predictions, targets, num_classes, ignored):
    """Accuracy and mean IoU, pixel by pixel."""
    kept = (targets >= 0) & (targets < num_classes) & (targets != ignored)
    predictions, targets = predictions[kept], targets[kept]
    ious = [
        ((predictions == index) & (targets == index)).sum() / union
        for index in range(num_classes)
        if (union := ((predictions == index) | (targets == index)).sum()) > 0
    ]
    return (predictions == targets).mean(), np.mean(ious)


@pytest.mark.parametrize(("ignore_index", "num_absent"), [(255, 0), (255, 2), (1, 0)])
def test_evaluate(ignore_index, num_absent):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (5, 6, 7), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = 255
    logits = torch.randn(5, 5, 6, 7, generator=generator)
    # Classes that neither occur nor are predicted do not count.
    logits = torch.cat([logits, torch.full((5, num_absent, 6, 7), -100.0)], dim=1)
    trainer = trainer_of(logits, targets, 5 + num_absent)
    assert isinstance(trainer, Trainer)
    metrics = trainer.evaluate() if ignore_index == 255 else trainer.evaluate(ignore_index)
    accuracy, mean_iou = reference(logits.argmax(1).numpy(), targets.numpy(), 5 + num_absent, ignore_index)
    assert metrics["acc_global"] == pytest.approx(accuracy)
    assert metrics["mean_iou"] == pytest.approx(mean_iou)
    assert math.isfinite(metrics["val_loss"])


def test_everything_ignored():
    trainer = trainer_of(torch.zeros(2, 3, 4, 4), torch.full((2, 4, 4), 255), 3)
    with pytest.warns(UserWarning, match="val_loss is NaN"):
        metrics = trainer.evaluate()
    assert all(math.isnan(value) for value in metrics.values())


def test_too_many_classes():
    with pytest.raises(ValueError, match="num_classes=3"):
        trainer_of(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4).long(), 3).evaluate()
    with pytest.raises(ValueError, match="num_classes"):
        trainer_of(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4).long(), 0)


def test_default_number_of_classes():
    loader = DataLoader(TensorDataset(torch.zeros(1, 10, 2, 2), torch.zeros(1, 2, 2).long()))
    model = Identity()
    trainer = SegmentationTrainer(model, loader, loader, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1))
    assert trainer.num_classes == 10


def test_learns(tmp_path):
    torch.manual_seed(0)
    targets = torch.randint(3, (16, 8, 8))
    pictures = one_hot(targets, 3).permute(0, 3, 1, 2) + 0.3 * torch.randn(16, 3, 8, 8)
    history = []
    model = nn.Conv2d(3, 3, 1)
    trainer = trainer_of(
        pictures, targets, 3, model=model, output_file=str(tmp_path / "checkpoint.pth"), on_epoch_end=history.append
    )
    trainer.fit_n_epochs(5, 1.0)
    assert history[-1]["mean_iou"] > 0.9
    assert history[-1]["val_loss"] < history[0]["val_loss"]
