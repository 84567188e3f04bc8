"""Fine-tuning with fake quantization: what it recovers, with labels and without, and that it can be stopped."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from holocron.nn.quantization import convert, learned_ranges, prepare_qat
from holocron.trainer import (
    ClassificationTrainer,
    DistillationLoss,
    QuantizationTrainer,
    UnlabelledDataset,
    VariedDataset,
)


class Images(Dataset):
    """The images of a dataset, without their labels."""

    def __init__(self, labelled):
        self.labelled = labelled

    def __len__(self):
        return len(self.labelled)

    def __getitem__(self, index):
        return self.labelled[index][0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            *(nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture(scope="module")
def float_model(digits, tmp_path_factory):
    """A network trained on digits, then rescaled channel by channel, which costs it most under one scale a tensor."""
    torch.manual_seed(0)
    train, val = digits
    model = Net()
    trainer = ClassificationTrainer(
        model,
        DataLoader(train, 32, shuffle=True),
        DataLoader(val, 100),
        nn.CrossEntropyLoss(),
        torch.optim.Adam(model.parameters()),
        output_file=str(tmp_path_factory.mktemp("float") / "model.pth"),
    )
    trainer.fit_n_epochs(6, 2e-2)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm, after in ((1, 3), (4, 6)):
            factor = torch.exp(0.9 * torch.randn(16, generator=generator))
            model.features[norm].weight.mul_(factor)
            model.features[norm].bias.mul_(factor)
            shape = (-1, 1, 1, 1) if model.features[after].groups > 1 else (1, -1, 1, 1)
            model.features[after].weight.div_(factor.view(shape))
    return model


def calibration(digits, n=64):
    return torch.stack([digits[0][i][0] for i in range(n)])


def accuracy(model, dataset):
    images, labels = (torch.stack(list(column)) for column in zip(*dataset, strict=True))
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


def make_trainer(model, digits, folder, teacher=None, criterion=None, n=600, **kwargs):
    train, val = Subset(digits[0], range(n)), digits[1]
    if teacher is not None:
        train, val = UnlabelledDataset(Images(train)), UnlabelledDataset(Images(val))
    generator = torch.Generator().manual_seed(0)
    return QuantizationTrainer(
        model,
        DataLoader(train, 50, shuffle=True, generator=generator),
        DataLoader(val, 100),
        criterion or (nn.CrossEntropyLoss() if teacher is None else DistillationLoss()),
        torch.optim.Adam(model.parameters()),
        teacher=teacher,
        output_file=str(folder / "qat.pth"),
        **kwargs,
    )


@pytest.mark.parametrize("scheme", ["trt", "cpu"])
@pytest.mark.parametrize("labelled", [False, True])
def test_two_epochs_win_back_what_one_scale_a_tensor_costs(float_model, digits, tmp_path, scheme, labelled):
    before = accuracy(float_model, digits[1])
    qat = prepare_qat(float_model, calibration(digits), scheme, per_channel=False, equalize=False)
    start = accuracy(qat, digits[1])
    trainer = make_trainer(qat, digits, tmp_path, None if labelled else float_model)
    trainer.fit_n_epochs(2, 1e-2)
    assert before > 0.9
    assert start < before - 0.04
    assert accuracy(qat, digits[1]) > before - 0.02


def test_a_teacher_leaves_labels_unread_and_is_left_alone(float_model, digits, tmp_path):
    teacher = copy.deepcopy(float_model)
    saved = copy.deepcopy(teacher.state_dict())
    qat = prepare_qat(float_model, calibration(digits))
    trainer = make_trainer(qat, digits, tmp_path, teacher.train(), n=100)
    trainer.fit_n_epochs(1, 1e-3)
    assert not teacher.training
    torch.testing.assert_close(teacher.state_dict(), saved, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_metrics_are_agreement_with_the_teacher_or_accuracy(float_model, digits, tmp_path):
    qat = prepare_qat(float_model, calibration(digits), per_channel=False)
    metrics = make_trainer(qat, digits, tmp_path, float_model).evaluate()
    images = torch.stack(list(Images(digits[1])))
    with torch.no_grad():
        ours, theirs = qat(images), float_model(images)
    assert metrics["agreement"] == pytest.approx((ours.argmax(1) == theirs.argmax(1)).float().mean().item())
    assert metrics["val_loss"] == pytest.approx(DistillationLoss()(ours, theirs).item(), rel=1e-4)
    labelled = make_trainer(qat, digits, tmp_path).evaluate()
    assert labelled["acc1"] == pytest.approx(accuracy(qat, digits[1]))


def test_the_same_seed_gives_the_same_ranges(float_model, digits, tmp_path):
    found = []
    for _ in range(2):
        qat = prepare_qat(float_model, calibration(digits), per_channel=False)
        make_trainer(qat, digits, tmp_path, float_model, n=200).fit_n_epochs(2, 3e-3)
        found.append(learned_ranges(qat))
    assert found[0] == found[1]
    assert found[0] != learned_ranges(prepare_qat(float_model, calibration(digits), per_channel=False))


def test_a_training_that_leads_away_leaves_the_start(float_model, digits, tmp_path):
    qat = prepare_qat(float_model, calibration(digits))
    before = copy.deepcopy(qat.state_dict())
    seen = []
    trainer = make_trainer(qat, digits, tmp_path, float_model, n=100, on_epoch_end=seen.append)
    loss = trainer.evaluate()["val_loss"]
    trainer.fit_n_epochs(1, 1.0)
    assert seen[0]["val_loss"] > loss
    torch.testing.assert_close(qat.state_dict(), before, rtol=0, atol=0)
    assert trainer.evaluate()["val_loss"] == pytest.approx(loss)


def test_of_all_epochs_the_best_is_kept(float_model, digits, tmp_path):
    seen = []
    qat = prepare_qat(float_model, calibration(digits), per_channel=False)
    trainer = make_trainer(qat, digits, tmp_path, float_model, n=200, on_epoch_end=seen.append)
    start = trainer.evaluate()["val_loss"]
    trainer.fit_n_epochs(3, 1e-2)
    assert trainer.evaluate()["val_loss"] == pytest.approx(min(start, *(m["val_loss"] for m in seen)))


def test_an_interrupted_training_goes_on_where_it_was(float_model, digits, tmp_path):
    def fresh():
        return prepare_qat(float_model, calibration(digits), per_channel=False)

    whole = make_trainer(fresh(), digits, tmp_path / "whole", float_model, n=200)
    whole.fit_n_epochs(2, 1e-2)

    def stop(metrics):
        raise KeyboardInterrupt

    first = make_trainer(fresh(), digits, tmp_path / "part", float_model, n=200, on_epoch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        first.fit_n_epochs(2, 1e-2)
    second = make_trainer(fresh(), digits, tmp_path / "part", float_model, n=200)
    second.load(torch.load(tmp_path / "part" / "qat.last.pth", weights_only=True))
    second.fit_n_epochs(2, 1e-2)
    torch.testing.assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_the_best_checkpoint_becomes_plain_weights_and_ranges(float_model, digits, tmp_path):
    qat = prepare_qat(float_model, calibration(digits))
    make_trainer(qat, digits, tmp_path, float_model, n=100).fit_n_epochs(1, 1e-3)
    restored = prepare_qat(float_model, calibration(digits))
    restored.load_state_dict(torch.load(tmp_path / "qat.pth", weights_only=True)["model"])
    assert learned_ranges(restored) == learned_ranges(qat)
    plain = convert(restored)
    torch.testing.assert_close(plain.get_submodule("head").weight, qat.get_submodule("head").weight)
    assert accuracy(plain, digits[1]) > accuracy(float_model, digits[1]) - 0.03


def test_mixed_precision_trains(float_model, digits, tmp_path):
    qat = prepare_qat(float_model, calibration(digits))
    trainer = make_trainer(qat, digits, tmp_path, float_model, n=100, amp=True)
    trainer.fit_n_epochs(1, 1e-3)
    assert math.isfinite(trainer.min_loss)


def test_distillation_is_a_divergence():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 6, 4))

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    for temperature in (1.0, 3.0):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
        loss = DistillationLoss(temperature)
        assert loss(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(expected)
        assert loss(torch.tensor(teacher), torch.tensor(teacher)).item() == pytest.approx(0, abs=1e-12)


def test_bad_arguments_are_refused(float_model, digits, tmp_path):
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            DistillationLoss(temperature)
    qat = prepare_qat(float_model, calibration(digits))
    with pytest.raises(ValueError, match="teacher is the model itself"):
        make_trainer(qat, digits, tmp_path, qat)
    trainer = make_trainer(qat, digits, tmp_path, float_model)
    trainer.val_loader = DataLoader(Subset(digits[1], []))
    with pytest.raises(ValueError, match="val_loader is empty"):
        trainer.evaluate()


def test_unlabelled_images_have_no_class(digits):
    dataset = UnlabelledDataset(Images(digits[0]))
    assert len(dataset) == 1200
    image, label = dataset[3]
    torch.testing.assert_close(image, digits[0][3][0])
    assert label == -1


class Tensors(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_variants_are_mirrored_and_shifted():
    """A point is found where it or its mirror image is, up to an eighth of the size away; half of the time alone."""
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 8, 5] = 1
    varied = VariedDataset(Tensors(image), variants=300)
    assert len(varied) == 300
    read = [varied[i][0] for i in range(300)]
    assert all(variant.shape == (16, 16) and variant.sum() == pytest.approx(1) for variant in read)
    alone = [tuple(variant.nonzero()[0].tolist()) for variant in read if variant.max() == 1]
    assert 100 < len(alone) < 230
    assert {row for row, _ in alone} == set(range(6, 11))
    assert {column for _, column in alone} == set(range(3, 8)) | set(range(8, 13))


def test_variants_are_mixed_with_another_image_that_keeps_the_smaller_part():
    torch.manual_seed(0)
    images = torch.stack([torch.full((3, 8, 8), value) for value in (0.0, 100.0)])
    varied = VariedDataset(Tensors(images), variants=200)
    values = torch.stack([varied[2 * i] for i in range(200)]).flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    assert values.max() <= 50
    assert 25 < (values[:, 0] > 0).sum() < 75  # half are mixed, half of these with the image itself


def test_variants_follow_the_seed_and_the_images_stay():
    images = torch.randn(3, 3, 20, 12, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    varied = VariedDataset(Tensors(images), 2)

    def draw(seed):
        torch.manual_seed(seed)
        return torch.stack([varied[i] for i in range(len(varied))])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(images, before)
    assert not torch.equal(draw(0)[:3], draw(0)[3:])
    tiny = VariedDataset(Tensors(torch.ones(2, 3, 1, 1)))
    assert torch.equal(tiny[1], torch.ones(3, 1, 1))


def test_bad_variants_are_refused():
    for variants in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match="variants"):
            VariedDataset(Tensors(torch.zeros(2, 3, 8, 8)), variants)
    for index in (-1, 2):
        with pytest.raises(IndexError, match="2 variants"):
            VariedDataset(Tensors(torch.zeros(2, 3, 8, 8)))[index]
