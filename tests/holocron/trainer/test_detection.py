import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

from holocron.trainer import DetectionTrainer, Trainer
from holocron.trainer.detection import assign_iou


def boxes_of(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def result(boxes, labels):
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long)}


class Answers(nn.Module):
    """Answers what it was told to, and learns one number."""

    def __init__(self, answers=()):
        super().__init__()
        self.answers = list(answers)
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, target=None):
        if self.training:
            assert isinstance(target, list)
            assert len(target) == len(x)
            return {"loc": self.weight**2, "clf": (self.weight - 1) ** 2 * x.mean()}
        return [self.answers[int(image[0])] for image in x]


def collate(batch):
    images, targets = zip(*batch, strict=True)
    return torch.stack(images), list(targets)


def trainer_of(targets, answers, **kwargs):
    data = [(torch.full((3,), float(index)), target) for index, target in enumerate(targets)]
    loader = DataLoader(data, 2, collate_fn=collate)
    model = Answers(answers)
    return DetectionTrainer(model, loader, loader, None, SGD(model.parameters(), lr=0.1), **kwargs)


def test_assign_takes_the_best_overlap_first():
    gt = boxes_of([0, 0, 10, 10], [1, 0, 11, 10])
    pred = boxes_of([1, 0, 11, 10], [0, 2, 10, 12])
    assert assign_iou(gt, pred) == ([1, 0], [0, 1])
    assert assign_iou(gt, pred, 0.9) == ([1], [0])


def test_assign_uses_each_box_once():
    gt = boxes_of([0, 0, 10, 10], [0, 0, 10, 10])
    assert assign_iou(gt, boxes_of([0, 0, 10, 10])) == ([0], [0])
    assert assign_iou(gt[:1], gt) == ([0], [0])
    assert assign_iou(gt, boxes_of()) == ([], [])
    assert assign_iou(boxes_of(), gt) == ([], [])


def test_assign_is_greedy():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        corners = torch.rand(2, 6, 2, generator=generator) * 10
        gt, pred = (torch.cat([part, part + 8], dim=1) for part in corners)
        overlaps = {
            (i, j): box_iou(gt[i : i + 1], pred[j : j + 1]).item() for i, j in itertools.product(range(6), range(6))
        }
        expected = []
        while overlaps and max(overlaps.values()) >= 0.3:
            best = max(overlaps, key=overlaps.get)
            expected.append(best)
            overlaps = {pair: iou for pair, iou in overlaps.items() if pair[0] != best[0] and pair[1] != best[1]}
        assert list(zip(*assign_iou(gt, pred, 0.3), strict=True)) == expected


def test_evaluate():
    square, far, shifted = [0, 0, 10, 10], [50, 50, 60, 60], [2, 0, 12, 10]
    targets = [
        result(boxes_of(square, far), [1, 2]),  # both found, one of the wrong class
        result(boxes_of(square), [1]),  # missed
        result(boxes_of(), []),  # something found where there is nothing
        result(boxes_of(square), [3]),  # found beside: IoU 2/3
        result(boxes_of(square), [3]),  # found twice
    ]
    answers = [
        result(boxes_of(far, square), [1, 1]),
        result(boxes_of(), []),
        result(boxes_of(square), [1]),
        result(boxes_of(shifted), [3]),
        result(boxes_of(square, square), [3, 3]),
    ]
    trainer = trainer_of(targets, answers)
    assert isinstance(trainer, Trainer)
    # 5 targets, 6 predictions, 4 pairs of which 3 of the right class
    assert trainer.evaluate() == {
        "loc_err": pytest.approx(1 - 8 / 11),
        "clf_err": pytest.approx(1 / 4),
        "det_err": pytest.approx(1 - 6 / 11),
        "val_loss": pytest.approx(1 - 8 / 11),
    }
    assert trainer.evaluate(iou_threshold=0.7)["loc_err"] == pytest.approx(1 - 6 / 11)


def test_evaluate_without_boxes():
    empty = result(boxes_of(), [])
    metrics = trainer_of([empty], [empty]).evaluate()
    assert metrics == dict.fromkeys(("loc_err", "clf_err", "det_err", "val_loss"))
    missed = trainer_of([result(boxes_of([0, 0, 1, 1]), [1])], [empty]).evaluate()
    assert missed == {"loc_err": 1, "clf_err": None, "det_err": 1, "val_loss": 1}


def test_evaluate_nothing():
    with pytest.raises(ValueError, match="val_loader is empty"):
        trainer_of([], []).evaluate()


@pytest.mark.parametrize("amp", [True, False])
@pytest.mark.parametrize("has_boxes", [True, False])
def test_trains_on_the_sum_of_the_losses(tmp_path, has_boxes, amp):
    box = result(boxes_of([0, 0, 1, 1]), [1]) if has_boxes else result(boxes_of(), [])
    history = []
    trainer = trainer_of(
        [box] * 4, [box] * 4, amp=amp, output_file=str(tmp_path / "checkpoint.pth"), on_epoch_end=history.append
    )
    trainer.fit_n_epochs(30, 0.1, sched_type="cosine")
    # The minimum of w^2 + (w - 1)^2 x, for x between 0.5 and 2.5, is between 1/3 and 5/7.
    assert 1 / 3 < trainer.model.weight.item() < 5 / 7
    assert (tmp_path / "checkpoint.last.pth").exists()
    # There is a best checkpoint where there was something to measure.
    assert (tmp_path / "checkpoint.pth").exists() == has_boxes
    assert trainer.min_loss == (0 if has_boxes else math.inf)
    assert len(history) == 30


def test_trial_runs(shown):
    box = result(boxes_of([0, 0, 1, 1]), [1])
    trainer = trainer_of([box] * 8, [box] * 8)
    trainer.find_lr(num_it=4)
    trainer.check_setup(num_it=3)
    assert trainer.model.weight.item() == 2
    assert len(shown) == 1
