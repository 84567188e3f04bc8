"""A training program that knows nothing of the number of processes that run it; only its batch size follows."""

import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from holocron.trainer import ClassificationTrainer, DetectionTrainer, SegmentationTrainer

GLOBAL_BATCH = 8


def data(size, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 3
    return torch.randn(size, 4, generator=generator, dtype=torch.float64) + 2 * labels[:, None], labels


class StopAt(nn.CrossEntropyLoss):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, out, target):
        self.count -= 1
        if self.count < 0:
            raise KeyboardInterrupt
        return super().forward(out, target)


class Told(nn.Module):
    """Detects a box that is right for two images in three."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, target=None):
        if self.training:
            return {"loss": (self.weight * x).square().mean()}
        return [
            {"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "labels": torch.tensor([int(row[0]) % 3 > 0]).long()}
            for row in x
        ]


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()]).tolist()


def run(folder, num_processes):
    """Train in several ways, and return what came of each."""
    batch = GLOBAL_BATCH // num_processes
    points, labels = data(64, 0)
    broken = points.clone()
    broken[[9, 30, 31]] = math.nan
    val = DataLoader(TensorDataset(*data(19, 1)), 4)
    results = {}

    def trainer(name, train, optimizer=None, dropout=0.0, norm=False, **kwargs):
        # Other weights and other random numbers in each process, of which rank 0's count.
        torch.manual_seed(int(os.environ.get("RANK", "0")))
        layers = [nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(8, 3)).double()
        made = SGD(model.parameters(), lr=0.1, momentum=0.9) if optimizer is None else optimizer(model.parameters())
        history = results.setdefault(name, {"history": []})["history"]
        arguments = {"criterion": nn.CrossEntropyLoss(), "on_epoch_end": history.append, **kwargs}
        return ClassificationTrainer(
            model, train, val, optimizer=made, output_file=str(folder / f"{name}.pth"), **arguments
        )

    def loader(tensors=(points, labels), **kwargs):
        return DataLoader(TensorDataset(*tensors), batch, **kwargs)

    def fit(name, made, **kwargs):
        made.fit_n_epochs(2, 0.05, **kwargs)
        results[name]["weights"] = weights(made.model)
        results[name]["step"] = made.step

    fit("plain", trainer("plain", loader()))
    fit("shuffled", trainer("shuffled", loader(shuffle=True), optimizer=AdamW))
    own = torch.Generator().manual_seed(4)
    fit("generator", trainer("generator", loader(shuffle=True, generator=own), norm=False), sched_type="cosine")
    weighted = WeightedRandomSampler([1.0, 2.0, 3.0, 4.0] * 16, 32)
    fit("weighted", trainer("weighted", loader(sampler=weighted)))
    fit("accumulated", trainer("accumulated", loader(shuffle=True), gradient_acc=3, gradient_clip=0.3))
    fit("frozen", trainer("frozen", loader()), freeze_until="0")
    for gradient_acc in (1, 3):
        name = f"nan{gradient_acc}"
        fit(name, trainer(name, loader((broken, labels)), skip_nan_loss=True, gradient_acc=gradient_acc))

    # What one process cannot be compared to: statistics of each process's batch, and batches drawn as such.
    fit("norm", trainer("norm", loader(shuffle=True), norm=True))
    batches = BatchSampler(RandomSampler(points), batch, drop_last=True)
    fit("batches", trainer("batches", DataLoader(TensorDataset(points, labels), batch_sampler=batches)))
    uneven = (points[:61], labels[:61])
    fit("uneven", trainer("uneven", loader(uneven, shuffle=True)))
    fit("dropped", trainer("dropped", loader(uneven, shuffle=True, drop_last=True)))

    for stop in (False, True):
        name = "interrupted" if stop else "whole"
        made = trainer(name, loader(shuffle=True), dropout=0.3, criterion=StopAt(15 if stop else 10**9))
        with suppress(KeyboardInterrupt):
            fit(name, made)
    made = trainer("resumed", loader(shuffle=True), dropout=0.3)
    torch.manual_seed(77)
    made.load(torch.load(folder / "interrupted.last.pth", weights_only=True))
    fit("resumed", made)

    made = trainer("find_lr", loader())
    made.find_lr(num_it=6, start_lr=1e-3)
    results["find_lr"] = {"losses": made.loss_recorder}

    model = nn.Conv2d(2, 3, 1)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, 2, 4, 4, generator=generator), torch.randint(3, (5, 4, 4), generator=generator)
    pixels = DataLoader(TensorDataset(*pictures), 2)
    segmenter = SegmentationTrainer(
        model, pixels, pixels, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1), num_classes=3
    )
    torch.nn.init.constant_(model.weight, 0.1)
    torch.nn.init.constant_(model.bias, 0.0)
    results["segmentation"] = {"metrics": segmenter.evaluate()}

    detector = Told()
    truth = {"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "labels": torch.tensor([1])}
    boxes = DataLoader(
        [(torch.tensor([float(index)]), truth) for index in range(7)],
        2,
        collate_fn=lambda samples: (torch.stack([x for x, _ in samples]), [target for _, target in samples]),
    )
    detection = DetectionTrainer(
        detector, boxes, boxes, None, SGD(detector.parameters(), 0.1), output_file=str(folder / "detection.pth")
    )
    detection.fit_n_epochs(1, 0.01)
    results["detection"] = {"metrics": detection.evaluate(), "weights": weights(detector)}
    return results


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    results = run(folder, int(os.environ["WORLD_SIZE"]))
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
