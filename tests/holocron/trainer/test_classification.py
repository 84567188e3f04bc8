import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from holocron.trainer import BinaryClassificationTrainer, ClassificationTrainer, Trainer


class Shift(nn.Module):
    """Gives its input back as logits: a test decides on them."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x.flatten(1) + self.shift


class Unbatch(Shift):
    def forward(self, x):
        return super().forward(x)[:, 0]


def trainer_of(logits, targets, batch_size, kind=ClassificationTrainer, criterion=None, model=None):
    loader = DataLoader(TensorDataset(logits, targets), batch_size)
    model = Shift() if model is None else model
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    return kind(model, loader, loader, criterion, SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("num_classes", [2, 4, 5, 12])
def test_evaluate(num_classes, batch_size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, num_classes, generator=generator)
    targets = torch.randint(num_classes, (23,), generator=generator)
    metrics = trainer_of(logits, targets, batch_size).evaluate()
    ranks = np.array([(row > row[label]).sum().item() for row, label in zip(logits, targets, strict=True)])
    assert metrics == {
        "val_loss": pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-6),
        "acc1": pytest.approx((ranks < 1).mean()),
        "acc5": pytest.approx((ranks < 5).mean()),
    }


def test_evaluate_soft_targets():
    logits = torch.eye(6) * 3
    metrics = trainer_of(logits, torch.eye(6) * 0.9 + 0.1 / 6, 4).evaluate()
    assert metrics["acc1"] == 1


def test_evaluate_leaves_nan_losses_out():
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(12) % 3
    expected = nn.functional.cross_entropy(logits[4:], targets[4:]).item()
    logits[1] = math.nan
    assert trainer_of(logits, targets, 4).evaluate()["val_loss"] == pytest.approx(expected, rel=1e-6)
    logits[:] = math.nan
    with pytest.warns(UserWarning, match="val_loss is NaN"):
        assert math.isnan(trainer_of(logits, targets, 4).evaluate()["val_loss"])


def test_evaluate_nothing():
    for kind, targets in (
        (ClassificationTrainer, torch.zeros(0).long()),
        (BinaryClassificationTrainer, torch.zeros(0)),
    ):
        with pytest.raises(ValueError, match="val_loader is empty"):
            trainer_of(torch.zeros(0, 3), targets, 4, kind).evaluate()


def test_evaluate_does_not_change_the_model():
    model = nn.Sequential(nn.BatchNorm1d(3), Shift())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer_of(torch.rand(12, 3), torch.zeros(12).long(), 4, model=model).evaluate()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_binary_evaluate(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, *shape, generator=generator)
    targets = torch.rand(11, *shape, generator=generator)

    class Reshape(Shift):
        def forward(self, x):
            return x + self.shift

    trainer = trainer_of(logits, targets, 4, BinaryClassificationTrainer, nn.BCEWithLogitsLoss(), Reshape())
    if not shape:  # every sample must have a logit of its own
        logits, targets = logits[:, None], targets[:, None]
        trainer = trainer_of(logits, targets[:, 0], 4, BinaryClassificationTrainer, nn.BCEWithLogitsLoss(), Reshape())
    metrics = trainer.evaluate()
    assert metrics == {
        "val_loss": pytest.approx(nn.functional.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-6),
        "acc": pytest.approx(((logits > 0) == (targets >= 0.5)).float().mean().item()),
    }


def test_binary_learns_from_integer_labels(tmp_path):
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    points = torch.randn(64, 4) + 3 * labels[:, None] - 1.5
    loader = DataLoader(TensorDataset(points, labels), 8)
    model = nn.Linear(4, 1)
    history = []
    trainer = BinaryClassificationTrainer(
        model,
        loader,
        loader,
        nn.BCEWithLogitsLoss(),
        SGD(model.parameters(), lr=0.1),
        output_file=str(tmp_path / "checkpoint.pth"),
        on_epoch_end=history.append,
    )
    assert isinstance(trainer, ClassificationTrainer)
    assert isinstance(trainer, Trainer)
    trainer.fit_n_epochs(5, 0.1)
    assert history[-1]["acc"] > 0.9


# Plots


def images(count, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, 2, 2, generator=generator)


@pytest.mark.parametrize(("num_images", "num_samples"), [(10, 3), (10, 4), (10, 6), (3, 12), (30, 12)])
def test_plot_top_losses(shown, num_images, num_samples):
    pictures = images(num_images)
    targets = torch.arange(num_images) % 12
    trainer = trainer_of(pictures, targets, 4)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    classes = [f"class {index}" for index in range(12)]
    trainer.plot_top_losses(mean, std, classes, num_samples, block=False)
    assert shown == [{"block": False}]

    logits = pictures.flatten(1)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = losses.argsort(descending=True)[:num_samples].tolist()
    axes = [axis for axis in plt.gcf().axes if axis.images]
    assert len(axes) == min(num_images, num_samples)
    for axis, index in zip(axes, expected, strict=True):
        prob, pred = logits[index].softmax(0).max(0)
        caption = f"{losses[index]:.3} / class {pred} ({prob:.1%}) / class {targets[index]}"
        assert axis.get_title() == caption
        picture = pictures[index] * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        shown_picture = torch.from_numpy(np.array(axis.images[0].get_array())).permute(2, 0, 1)
        assert (shown_picture - 255 * picture.clamp(0, 1)).abs().max() <= 1
    assert trainer.criterion.reduction == "mean"


def test_plot_top_losses_of_a_binary_classifier(shown):
    pictures = images(6, channels=1)
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    criterion = nn.BCEWithLogitsLoss(reduction="sum")

    class Mean(Shift):
        def forward(self, x):
            return super().forward(x).mean(1, keepdim=True)

    trainer = trainer_of(pictures, targets, 4, BinaryClassificationTrainer, criterion, Mean())
    trainer.plot_top_losses((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), num_samples=2)
    logits = pictures.flatten(1).mean(1)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    worst = losses.argmax()
    assert (
        plt.gcf().axes[0].get_title() == f"{losses[worst]:.3} / {logits[worst].sigmoid():.2} / {float(targets[worst])}"
    )
    assert criterion.reduction == "sum"


def test_plot_top_losses_puts_nan_first(shown):
    pictures = images(8)
    pictures[5] = math.nan
    trainer = trainer_of(pictures, torch.zeros(8).long(), 4)
    trainer.plot_top_losses((0, 0, 0), (1, 1, 1), [str(index) for index in range(12)], 2)
    assert plt.gcf().axes[0].get_title().startswith("nan")


def test_plot_top_losses_refuses(shown):
    normal = ((0, 0, 0), (1, 1, 1))
    trainer = trainer_of(images(4), torch.zeros(4).long(), 4)
    with pytest.raises(AssertionError, match="classes"):
        trainer.plot_top_losses(*normal)
    with pytest.raises(ValueError, match="num_samples"):
        trainer.plot_top_losses(*normal, ["a"] * 12, num_samples=0)
    trainer.criterion = nn.functional.cross_entropy
    with pytest.raises(ValueError, match="reduction"):
        trainer.plot_top_losses(*normal, ["a"] * 12)
    empty = trainer_of(images(0), torch.zeros(0).long(), 4)
    with pytest.raises(ValueError, match="no image"):
        empty.plot_top_losses(*normal, ["a"] * 12)
    assert empty.criterion.reduction == "mean"
    assert shown == []
