import math
import os
import stat

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from holocron.optim.wrapper import Lookahead
from holocron.trainer import ClassificationTrainer, Trainer


def states_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def make(blobs, mlp, tmp_path):
    """Makes a trainer of a small network; what is not given has a default."""

    def build(model=None, optimizer=None, criterion=None, train=None, val=None, **kwargs):
        model = mlp() if model is None else model
        optimizer = SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
        kwargs = {"output_file": str(tmp_path / "checkpoint.pth"), **kwargs}
        loaders = (blobs[0] if train is None else train, blobs[1] if val is None else val)
        return ClassificationTrainer(model, *loaders, criterion or nn.CrossEntropyLoss(), optimizer, **kwargs)

    return build


class StopAt(nn.CrossEntropyLoss):
    """Interrupts the training at the n-th loss."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, out, target):
        self.count -= 1
        if self.count < 0:
            raise KeyboardInterrupt
        return super().forward(out, target)


# What training does


def test_learns_digits(digits, tmp_path, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    history = []
    trainer = ClassificationTrainer(
        model,
        DataLoader(digits[0], 32, shuffle=True),
        DataLoader(digits[1], 64),
        nn.CrossEntropyLoss(),
        AdamW(model.parameters()),
        output_file=str(tmp_path / "digits.pth"),
        on_epoch_end=history.append,
    )
    trainer.fit_n_epochs(4, 1e-2)
    assert history[-1]["acc1"] > 0.9
    assert history[-1]["val_loss"] < 0.5 * history[0]["val_loss"]
    assert (trainer.epoch, trainer.step) == (4, 4 * 38)
    best = min(history, key=lambda metrics: metrics["val_loss"])
    assert trainer.min_loss == best["val_loss"]
    assert load(tmp_path / "digits.pth")["epoch"] == history.index(best) + 1
    output = capsys.readouterr()
    assert [line.split(" - ")[0] for line in output.out.splitlines() if line.startswith("Epoch")] == [
        f"Epoch {epoch}/4" for epoch in range(1, 5)
    ]
    assert output.err == ""


def test_base_trainer_does_not_evaluate(blobs, mlp):
    model = mlp()
    with pytest.raises(NotImplementedError, match="evaluate"):
        Trainer(model, *blobs, nn.CrossEntropyLoss(), SGD(model.parameters(), 0.1)).fit_n_epochs(1, 0.1)


def recorded_lrs(optimizer):
    lrs = []
    optimizer.register_step_pre_hook(lambda opt, *_: lrs.append([group["lr"] for group in opt.param_groups]))
    return lrs


@pytest.mark.parametrize("gradient_acc", [1, 5])
@pytest.mark.parametrize(
    ("sched_type", "kwargs", "reference"),
    [
        ("onecycle", {}, lambda opt, n: OneCycleLR(opt, 0.2, total_steps=n)),
        ("onecycle", {"pct_start": 0.5}, lambda opt, n: OneCycleLR(opt, 0.2, total_steps=n, pct_start=0.5)),
        ("cosine", {}, lambda opt, n: CosineAnnealingLR(opt, n)),
        ("cosine", {"eta_min": 0.01}, lambda opt, n: CosineAnnealingLR(opt, n, eta_min=0.01)),
    ],
)
def test_schedule_is_that_of_torch(make, sched_type, kwargs, reference, gradient_acc):
    trainer = make(gradient_acc=gradient_acc)
    lrs = recorded_lrs(trainer.optimizer)
    trainer.fit_n_epochs(3, 0.2, sched_type=sched_type, **kwargs)
    num_updates = 3 * math.ceil(12 / gradient_acc)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    scheduler = reference(optimizer, num_updates)
    expected = []
    for _ in range(num_updates):
        expected.append([optimizer.param_groups[0]["lr"]])
        optimizer.step()
        scheduler.step()
    assert lrs == expected


def test_onecycle_without_momentum(make, mlp):
    model = mlp()
    make(model, Adagrad(model.parameters())).fit_n_epochs(1, 0.1)


@pytest.mark.parametrize("num_samples", [48, 40])
def test_gradient_accumulation_is_a_larger_batch(blobs, mlp, make, num_samples):
    # With 40 samples the last update of an epoch has one batch out of three.
    data = TensorDataset(*blobs[0].dataset[:num_samples])
    small, large = mlp(), mlp()
    make(small, train=DataLoader(data, 4), gradient_acc=3, gradient_clip=0.5).fit_n_epochs(3, 0.3)
    make(large, train=DataLoader(data, 12), gradient_clip=0.5).fit_n_epochs(3, 0.3)
    for one, other in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradient_clip_bounds_the_update(make, mlp):
    model = mlp()
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0)
    norms = []
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([param.grad.flatten() for param in model.parameters()]).norm().item())
    )
    make(model, optimizer, gradient_clip=0.01).fit_n_epochs(1, 1e-3, sched_type="cosine")
    assert norms == pytest.approx([0.01] * 12, rel=1e-3)


def test_bfloat16_on_cpu(digits, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    seen = set()
    model[1].register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    history = []

    class Criterion(nn.CrossEntropyLoss):
        def forward(self, out, target):
            seen.add(("criterion", out.dtype))
            return super().forward(out, target)

    trainer = ClassificationTrainer(
        model,
        DataLoader(digits[0], 32),
        DataLoader(digits[1], 64),
        Criterion(),
        AdamW(model.parameters()),
        output_file=str(tmp_path / "checkpoint.pth"),
        amp=True,
        on_epoch_end=history.append,
    )
    trainer.fit_n_epochs(3, 1e-2)
    assert seen == {torch.bfloat16, ("criterion", torch.float32)}
    assert all(param.dtype == torch.float32 for param in model.parameters())
    assert history[-1]["acc1"] > 0.85


# Losses that are not finite


def with_nan(loader, *batches):
    points, labels = (tensor.clone() for tensor in loader.dataset.tensors)
    for batch in batches:
        points[4 * batch] = math.nan
    return DataLoader(TensorDataset(points, labels), 4)


@pytest.mark.parametrize("gradient_acc", [1, 2, 3])
def test_nan_batches_are_left_out(make, mlp, blobs, gradient_acc):
    model = mlp(norm=True)
    trainer = make(model, train=with_nan(blobs[0], 0, 3, 7, 11), skip_nan_loss=True, gradient_acc=gradient_acc)
    trainer.fit_n_epochs(2, 0.05)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    # Eight batches of each epoch have been seen by the batch normalization.
    assert model[1].num_batches_tracked == 16
    assert trainer.step == 24


def test_leaving_out_nan_is_training_without(make, mlp, blobs):
    points, labels = blobs[0].dataset.tensors
    skipping, without = mlp(norm=True), mlp(norm=True)
    make(skipping, train=with_nan(blobs[0], 11), skip_nan_loss=True).fit_n_epochs(1, 0.1, sched_type="cosine")
    reference = SGD(without.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(reference, 12)
    without.train()
    for x, target in zip(points[:44].split(4), labels[:44].split(4), strict=True):
        reference.zero_grad()
        nn.functional.cross_entropy(without(x), target).backward()
        reference.step()
        scheduler.step()
    assert states_equal(snapshot(skipping), snapshot(without))


def test_partly_nan_update_averages_the_rest(make, mlp, blobs):
    points, labels = blobs[0].dataset.tensors
    data = with_nan(DataLoader(TensorDataset(points[:12], labels[:12]), 4), 1)
    skipping, reference = mlp(), mlp()
    make(skipping, train=data, skip_nan_loss=True, gradient_acc=3).fit_n_epochs(1, 0.1, sched_type="cosine")
    rest = torch.cat([points[:4], points[8:12]]), torch.cat([labels[:4], labels[8:12]])
    make(reference, train=DataLoader(TensorDataset(*rest), 8)).fit_n_epochs(1, 0.1, sched_type="cosine")
    for one, other in zip(skipping.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("skip_nan_loss", [True, False])
def test_nan_tolerance(make, blobs, skip_nan_loss):
    data = with_nan(blobs[0], *range(2, 12))
    trainer = make(train=data, skip_nan_loss=skip_nan_loss, nan_tolerance=3)
    with pytest.raises(ValueError, match="nan_tolerance=3"):
        trainer.fit_n_epochs(1, 0.1)
    assert trainer.step == 5


def test_nan_tolerance_counts_consecutive_batches(make, blobs):
    data = with_nan(blobs[0], 0, 1, 3, 4, 6, 7)
    make(train=data, skip_nan_loss=True, nan_tolerance=2).fit_n_epochs(1, 0.1)


def test_diverged_model_is_not_saved(make, blobs, tmp_path):
    trainer = make(train=with_nan(blobs[0], 11))
    with pytest.warns(UserWarning, match="val_loss is NaN"):
        trainer.fit_n_epochs(1, 0.1)
    assert list(tmp_path.iterdir()) == []


# Checkpoints


def test_checkpoint_round_trip(make, mlp, tmp_path):
    trainer = make()
    trainer.fit_n_epochs(2, 0.1)
    path = tmp_path / "folder" / "saved.pth"
    trainer.save(str(path))
    state = load(path)
    assert {"epoch", "step", "min_loss", "model"} <= state.keys()
    assert (state["epoch"], state["step"]) == (2, 24)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    other = make()
    other.load(state)
    assert (other.epoch, other.start_epoch, other.step, other.min_loss) == (2, 2, 24, trainer.min_loss)
    assert states_equal(snapshot(other.model), snapshot(trainer.model))


def test_untrained_checkpoint_loads(make, tmp_path):
    trainer = make()
    trainer.save(str(tmp_path / "new.pth"))
    state = load(tmp_path / "new.pth")
    assert state["min_loss"] == math.inf
    trainer.load(state)


def test_checkpoint_with_four_keys(make):
    trainer = make()
    state = {"epoch": 3, "step": 36, "min_loss": 0.5, "model": snapshot(trainer.model)}
    trainer.load(state)
    trainer.fit_n_epochs(1, 0.1)
    assert (trainer.start_epoch, trainer.epoch, trainer.step) == (3, 4, 48)


@pytest.mark.parametrize("missing", ["epoch", "step", "min_loss", "model"])
def test_incomplete_checkpoint_is_refused(make, missing):
    trainer = make()
    state = {"epoch": 3, "step": 36, "min_loss": 0.5, "model": snapshot(trainer.model)}
    del state[missing]
    with pytest.raises(ValueError, match=missing):
        trainer.load(state)
    assert trainer.epoch == 0


def test_checkpoint_of_another_model_is_refused(make):
    trainer = make()
    state = {"epoch": 3, "step": 36, "min_loss": 0.5, "model": {"weight": torch.zeros(1)}}
    with pytest.raises(RuntimeError, match="weight"):
        trainer.load(state)
    assert trainer.epoch == 0


def test_interrupted_save_leaves_the_old_checkpoint(make, tmp_path, monkeypatch):
    trainer = make()
    path = tmp_path / "checkpoint.pth"
    trainer.save(str(path))
    before = path.read_bytes()

    def interrupted(state, file):
        file.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    trainer.epoch = 7
    with pytest.raises(KeyboardInterrupt):
        trainer.save(str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


OPTIMIZERS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: AdamW(params, lr=0.1),
    "lookahead": lambda params: Lookahead(AdamW(params, lr=0.1), sync_period=5),
}


@pytest.mark.parametrize(
    ("optimizer", "sched_type", "checkpoint", "own_generator"),
    [
        ("sgd", "onecycle", "checkpoint.last.pth", False),
        ("sgd", "cosine", "checkpoint.pth", True),
        ("adamw", "onecycle", "checkpoint.pth", False),
        ("adamw", "cosine", "checkpoint.last.pth", True),
        ("lookahead", "onecycle", "checkpoint.last.pth", False),
    ],
)
def test_resumed_training_ends_at_the_same_weights(
    make, mlp, blobs, tmp_path, checkpoint, sched_type, optimizer, own_generator
):
    def trainer(folder, **kwargs):
        model = mlp(norm=True, dropout=0.2)
        generator = torch.Generator().manual_seed(5) if own_generator else None
        loader = DataLoader(blobs[0].dataset, 4, shuffle=True, generator=generator)
        torch.manual_seed(3)
        output_file = str(tmp_path / folder / "checkpoint.pth")
        return make(
            model,
            OPTIMIZERS[optimizer](model.parameters()),
            train=loader,
            output_file=output_file,
            gradient_acc=2,
            gradient_clip=1.0,
            **kwargs,
        )

    arguments = {"num_epochs": 4, "lr": 0.02, "sched_type": sched_type, "norm_weight_decay": 0.0}
    whole = trainer("whole")
    whole.fit_n_epochs(**arguments)
    # In the middle of the third epoch; each has 12 batches and 3 of validation.
    interrupted = trainer("parts", criterion=StopAt(35))
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit_n_epochs(**arguments)
    state = load(tmp_path / "parts" / checkpoint)
    assert state["epoch"] == 2

    torch.manual_seed(99)
    resumed = trainer("parts")
    torch.manual_seed(98)
    resumed.load(state)
    resumed.fit_n_epochs(**arguments)
    assert (resumed.epoch, resumed.step) == (4, 48)
    assert states_equal(snapshot(resumed.model), snapshot(whole.model))
    assert resumed.min_loss == whole.min_loss


def test_resuming_leaves_the_checkpoint_alone(make, tmp_path):
    trainer = make(criterion=StopAt(20))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_n_epochs(2, 0.1)
    state = load(tmp_path / "checkpoint.last.pth")
    expected = load(tmp_path / "checkpoint.last.pth")
    for _ in range(2):
        resumed = make()
        resumed.load(state)
        resumed.fit_n_epochs(2, 0.1)
        assert resumed.epoch == 2
    assert str(state) == str(expected)


def test_other_arguments_start_a_new_schedule(make, tmp_path):
    trainer = make(criterion=StopAt(20))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_n_epochs(2, 0.1)
    other = make()
    other.load(load(tmp_path / "checkpoint.last.pth"))
    with pytest.warns(UserWarning, match=r"num_epochs \(2, now 3\)"):
        other.fit_n_epochs(3, 0.1)
    assert other.epoch == 4


def test_finished_training_goes_on_with_a_new_schedule(make, tmp_path):
    make().fit_n_epochs(2, 0.1)
    other = make()
    other.load(load(tmp_path / "checkpoint.last.pth"))
    other.fit_n_epochs(2, 0.1)
    assert other.epoch == 4


def test_state_saved_within_an_epoch_starts_a_new_schedule(make, tmp_path):
    trainer = make(criterion=StopAt(20))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_n_epochs(2, 0.1)
    trainer.save(str(tmp_path / "middle.pth"))
    other = make()
    other.load(load(tmp_path / "middle.pth"))
    other.fit_n_epochs(2, 0.1)
    assert other.epoch == 3


# Parameters: frozen, grouped


def test_freeze_until(make, mlp):
    model = mlp(norm=True)
    before = snapshot(model)
    trainer = make(model)
    trainer.fit_n_epochs(1, 0.1, freeze_until="1")
    after = snapshot(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"4.weight", "4.bias"}
    trainer.fit_n_epochs(1, 0.1)
    assert {name for name in before if torch.equal(after[name], snapshot(model)[name])} == set()


@pytest.mark.parametrize("method", ["fit_n_epochs", "find_lr", "check_setup"])
def test_unknown_layer(make, method):
    arguments = {"num_epochs": 1, "lr": 0.1} if method == "fit_n_epochs" else {"num_it": 5}
    with pytest.raises(ValueError, match="backbone"):
        getattr(make(), method)(freeze_until="backbone", **arguments)


def test_nothing_left_to_train(make):
    with pytest.raises(ValueError, match="left to train"):
        make().fit_n_epochs(1, 0.1, freeze_until="4")


def test_norm_weight_decay(make, mlp):
    model = mlp(norm=True)
    trainer = make(model, AdamW(model.parameters(), weight_decay=0.3))
    trainer.fit_n_epochs(1, 0.1, norm_weight_decay=0.0)
    groups = {
        group["weight_decay"]: {id(param) for param in group["params"]} for group in trainer.optimizer.param_groups
    }
    assert groups == {
        0.0: {id(param) for param in model[1].parameters()},
        0.3: {id(param) for index in (0, 4) for param in model[index].parameters()},
    }
    trainer.fit_n_epochs(1, 0.1)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.3]


def test_param_groups_of_the_user_are_kept(make, mlp):
    model = mlp(norm=True)
    optimizer = SGD(
        [{"params": model[0].parameters(), "weight_decay": 0.5}, {"params": [model[4].weight], "lr": 7.0}],
        lr=0.1,
        weight_decay=0.25,
    )
    trainer = make(model, optimizer)
    trainer.fit_n_epochs(1, 0.1, sched_type="cosine")
    groups = [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    # The third has what the user left out.
    assert groups == [(0.5, 2), (0.25, 1), (0.25, 3)]
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    trainer.fit_n_epochs(1, 0.1, freeze_until="1", norm_weight_decay=0.125)
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.25, 1), (0.25, 1)]


def test_norm_weight_decay_needs_an_optimizer_that_has_one(make, mlp):
    model = mlp()
    with pytest.raises(ValueError, match="norm_weight_decay"):
        make(model, torch.optim.Rprop(model.parameters())).fit_n_epochs(1, 0.1, norm_weight_decay=0.0)


def test_each_schedule_starts_the_optimizer_afresh(make, mlp):
    one, other = mlp(), mlp()
    trainer = make(one, AdamW(one.parameters()))
    trainer.fit_n_epochs(1, 0.01)
    other.load_state_dict(snapshot(one))
    trainer.fit_n_epochs(1, 0.01)
    make(other, AdamW(other.parameters())).fit_n_epochs(1, 0.01)
    assert states_equal(snapshot(one), snapshot(other))


# Bad arguments


@pytest.mark.parametrize(
    "kwargs",
    [
        {"gradient_acc": 0},
        {"gradient_acc": 1.5},
        {"gradient_clip": 0},
        {"gradient_clip": -1.0},
        {"gradient_clip": math.nan},
        {"nan_tolerance": -1},
    ],
)
def test_bad_arguments(make, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        make(**kwargs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", 0),
        ("num_epochs", 1.5),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("sched_type", "step"),
        ("norm_weight_decay", -0.1),
    ],
)
def test_bad_arguments_of_fit(make, name, value):
    with pytest.raises(ValueError, match=name):
        make().fit_n_epochs(**{"num_epochs": 1, "lr": 0.1, name: value})


def test_empty_loaders(make):
    nothing = TensorDataset(torch.zeros(0, 4).double(), torch.zeros(0, dtype=torch.long))
    few = TensorDataset(torch.zeros(3, 4).double(), torch.zeros(3, dtype=torch.long))
    for loader in (DataLoader(nothing, 4), DataLoader(few, 4, drop_last=True)):
        trainer = make(train=loader)
        with pytest.raises(ValueError, match="train_loader is empty"):
            trainer.fit_n_epochs(1, 0.1)
        with pytest.raises(ValueError, match="train_loader is empty"):
            trainer.check_setup()
    with pytest.raises(ValueError, match="val_loader is empty"):
        make(val=DataLoader(nothing, 4)).fit_n_epochs(1, 0.1)


def test_loader_without_length(make):
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(4).double(), 0

    with pytest.raises(ValueError, match="no length"):
        make(train=DataLoader(Stream())).fit_n_epochs(1, 0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_gpu_that_is_not_there(make):
    with pytest.raises(AssertionError, match="gpu=0"):
        make(gpu=0)
    trainer = make()
    trainer.gpu = 0
    with pytest.raises(ValueError, match="Invalid device index"):
        trainer.to_cuda(torch.zeros(1), torch.zeros(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("amp", [True, False])
def test_gpu_training_and_resuming(make, mlp, tmp_path, amp):
    with pytest.raises(ValueError, match="Invalid device index"):
        make(gpu=torch.cuda.device_count())
    torch.backends.cudnn.deterministic = True
    trainer = make(mlp(dropout=0.2).float(), gpu=0, amp=amp, gradient_clip=1.0, criterion=StopAt(35))
    loaders = (trainer.train_loader, trainer.val_loader)
    for loader in loaders:
        loader.dataset.tensors = (loader.dataset.tensors[0].float(), loader.dataset.tensors[1])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit_n_epochs(4, 0.1)
    assert trainer.scaler.is_enabled() == amp
    state = load(tmp_path / "checkpoint.last.pth")
    weights = []
    for _ in range(2):
        resumed = make(mlp(dropout=0.2).float(), gpu=0, amp=amp, gradient_clip=1.0)
        resumed.load(state)
        resumed.fit_n_epochs(4, 0.1)
        weights.append(snapshot(resumed.model))
    assert states_equal(*weights)


# Trial runs


def test_find_lr(make, mlp, shown):
    model = mlp(norm=True)
    before = snapshot(model)
    trainer = make(model)
    lrs = recorded_lrs(trainer.optimizer)
    trainer.find_lr(start_lr=1e-4, end_lr=1e-1, num_it=10)
    expected = torch.logspace(-4, -1, 10, dtype=torch.float64).tolist()
    assert trainer.lr_recorder == pytest.approx(expected)
    assert [lr[0] for lr in lrs] == pytest.approx(expected)
    assert len(trainer.loss_recorder) == 10
    assert states_equal(before, snapshot(model))
    # The first loss is that of the untouched model on the first batch.
    x, target = next(iter(trainer.train_loader))
    loss = nn.functional.cross_entropy(mlp(norm=True).train()(x), target)
    assert trainer.loss_recorder[0] == pytest.approx(loss.item())
    trainer.plot_recorder(block=False)
    assert shown == [{"block": False}]


def test_find_lr_stops_where_it_diverges(make, blobs):
    trainer = make(train=with_nan(blobs[0], 6))
    trainer.find_lr(num_it=12)
    assert len(trainer.lr_recorder) == len(trainer.loss_recorder) == 6
    with pytest.raises(ValueError, match="NaN or inf"):
        make(train=with_nan(blobs[0], 0)).find_lr(num_it=12)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_it", 13), ("num_it", 1), ("num_it", 0), ("start_lr", 0.0), ("end_lr", 1e-8), ("end_lr", math.inf)],
)
def test_find_lr_refuses(make, name, value):
    with pytest.raises(ValueError, match=name):
        make().find_lr(**{"num_it": 12, name: value})


def test_plot_recorder_needs_a_record(make):
    trainer = make()
    with pytest.raises(AssertionError, match="find_lr"):
        trainer.plot_recorder()
    trainer.find_lr(num_it=12)
    with pytest.raises(ValueError, match="beta"):
        trainer.plot_recorder(beta=1.0)
    trainer.loss_recorder.pop()
    with pytest.raises(AssertionError, match="find_lr"):
        trainer.plot_recorder()


def test_plot_recorder_shows_the_smoothed_loss(make, shown):
    from matplotlib import pyplot as plt

    trainer = make()
    trainer.lr_recorder = [10.0 ** (index / 10 - 5) for index in range(40)]
    trainer.loss_recorder = [3.0 - index / 20 for index in range(40)]
    trainer.plot_recorder(beta=0.0)
    line = plt.gca().lines[0]
    # A tenth of the points at the start and a twentieth at the end are left out.
    assert line.get_xdata().tolist() == trainer.lr_recorder[4:38]
    assert line.get_ydata().tolist() == trainer.loss_recorder[4:38]
    trainer.plot_recorder(beta=0.5)
    smoothed = plt.gca().lines[0].get_ydata()[0]
    weights = [0.5 ** (5 - index) for index in range(5)]
    expected = sum(w * loss for w, loss in zip(weights, trainer.loss_recorder, strict=False)) / sum(weights)
    assert smoothed == pytest.approx(expected)
    assert len(shown) == 2


def test_check_setup(make, mlp, shown):
    from matplotlib import pyplot as plt

    model = mlp(norm=True)
    before = snapshot(model)
    make(model).check_setup(lr=0.1, num_it=60, block=False)
    losses = plt.gca().lines[0].get_ydata()
    assert len(losses) == 60
    assert losses[-1] < 0.1 * losses[0]
    assert states_equal(before, snapshot(model))
    assert shown == [{"block": False}]


def test_check_setup_refuses(make, blobs):
    with pytest.raises(ValueError, match="NaN or inf"):
        make(train=with_nan(blobs[0], 0)).check_setup(num_it=3)
    with pytest.raises(ValueError, match="num_it"):
        make().check_setup(num_it=0)
