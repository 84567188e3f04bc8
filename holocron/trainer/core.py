"""The training loop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from holocron.trainer import checkpoint, distributed
from holocron.trainer.param_groups import build_scheduler, check_lr, reset_param_groups, user_param_groups
from holocron.trainer.reporting import bars_are_shown, describe_metrics, plot_losses, plot_lr_search, write_line
from holocron.trainer.updates import BufferGuard, NanWatch, autocast, make_scaler, trial_run, update_weights
from holocron.trainer.utils import check_gpu_index, count_batches, freeze_bn, freeze_model, move_to

__all__ = ["Trainer"]

Target = Tensor | list[dict[str, Tensor]]


class Trainer:
    """Trains a model; subclasses say how the loss is computed and how the model is evaluated.

    **Checkpoints.** After each epoch, `output_file` receives the state with the lowest validation loss so far, and
    ``<output_file's stem>.last<its suffix>`` next to it the state of that epoch. Both are replaced in one step, so an
    interrupt at any moment leaves a file that can be read, and both load with ``torch.load(path, weights_only=True)``.

    **Resuming.** Pass a checkpoint to :meth:`load`, then call :meth:`fit_n_epochs` with the arguments of the call that
    was interrupted: the remaining epochs of its schedule are trained, with optimizer and random generators where they
    were, and end at the weights an uninterrupted run ends at (given deterministic kernels; workers that persist over
    epochs keep random states of their own). Called with other arguments, it starts a new schedule from the loaded
    weights.

    **Several processes.** Under ``torchrun`` the same program trains with
    :class:`~torch.nn.parallel.DistributedDataParallel`: the process group is joined (NCCL when `gpu` is given, which
    then stands for the GPU of the local rank, Gloo otherwise), the loaders are sharded, metrics are summed over the
    processes, and rank 0 alone saves, prints and calls `on_epoch_end`. The batch size of a loader is that of one
    process, and so are the batches that batch normalization sees, of which rank 0's statistics are kept.
    Checkpoints are those of a single process.

    **Mixed precision.** With `amp`, the forward pass runs in float16 with gradient scaling on a GPU and in bfloat16 on
    CPU; the criterion is computed in float32.

    Args:
        model: the model to train
        train_loader: the training data
        val_loader: the validation data
        criterion: the loss, called with the output of the model and the target
        optimizer: the optimizer; :meth:`fit_n_epochs` sets its learning rates and starts it afresh, keeping the other
            options of its parameter groups and adding the parameters of the model that are in none
        gpu: index of the GPU to use
        output_file: where the best checkpoint goes
        amp: whether to use automatic mixed precision
        skip_nan_loss: whether a batch with a loss that is NaN or infinite is left out, instead of trained on
        nan_tolerance: number of consecutive such batches after which one more stops the training
        gradient_acc: number of batches whose gradients are averaged for an update (what is left over at the end of an
            epoch makes a smaller one)
        gradient_clip: the largest norm of the gradient, by default unlimited
        on_epoch_end: called with the metrics at the end of each epoch

    Raises:
        AssertionError: if `gpu` is given and PyTorch cannot access one
        ValueError: if an argument is out of range
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        criterion: nn.Module,
        optimizer: Optimizer,
        gpu: int | None = None,
        output_file: str = "./checkpoint.pth",
        amp: bool = False,
        skip_nan_loss: bool = False,
        nan_tolerance: int = 5,
        gradient_acc: int = 1,
        gradient_clip: float | None = None,
        on_epoch_end: Callable[[dict[str, float]], Any] | None = None,
    ) -> None:
        if not isinstance(gradient_acc, int) or gradient_acc < 1:
            raise ValueError(f"gradient_acc is expected to be a positive number of batches, got {gradient_acc!r}")
        if not isinstance(nan_tolerance, int) or nan_tolerance < 0:
            raise ValueError(f"nan_tolerance is expected to be a number of batches, got {nan_tolerance!r}")
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"gradient_clip is expected to be a positive norm or None, got {gradient_clip!r}")
        self.model = model
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.criterion = criterion
        self.optimizer = optimizer
        self.output_file = output_file
        self.amp = amp
        self.skip_nan_loss = skip_nan_loss
        self.nan_tolerance = nan_tolerance
        self.gradient_acc = gradient_acc
        self.grad_clip = gradient_clip
        self.on_epoch_end = on_epoch_end

        self.step = 0
        self.start_epoch = 0
        self.epoch = 0
        self.min_loss = math.inf
        self.lr_recorder: list[float] = []
        self.loss_recorder: list[float] = []
        self.scheduler: LRScheduler | None = None

        self._user_groups = user_param_groups(optimizer)
        self._shards: dict[tuple[int, bool], tuple[DataLoader[Any], DataLoader[Any]]] = {}
        self._nan_watch = NanWatch(nan_tolerance)
        self._fit: dict[str, Any] | None = None
        self._between_epochs = True  # a schedule can be resumed from nowhere else
        self._rank_rng: list[dict[str, Any]] = []
        self._loaded: dict[str, Any] | None = None

        self.gpu: int | None = None
        self.set_device(distributed.join_process_group(gpu))
        distributed.broadcast(self.model.state_dict().values())
        self._forward: nn.Module = self.model
        self.scaler = make_scaler(self.model, self.amp)

    def set_device(self, gpu: int | None = None) -> None:
        """Move the model and the criterion to a GPU.

        Args:
            gpu: index of the GPU; nothing moves when it is None

        Raises:
            AssertionError: if PyTorch cannot access a GPU
            ValueError: if there is no GPU of that index
        """
        if gpu is not None:
            if not torch.cuda.is_available():
                raise AssertionError(f"gpu={gpu} was asked for, but PyTorch cannot access a GPU; pass gpu=None for CPU")
            check_gpu_index(gpu)
            torch.cuda.set_device(gpu)
            self.model = self.model.to(f"cuda:{gpu}")
            if isinstance(self.criterion, nn.Module):
                self.criterion = self.criterion.to(f"cuda:{gpu}")
        self.gpu = gpu
        self._forward = self.model

    def to_cuda(self, x: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Move a batch to the GPU of the trainer, if it has one.

        Args:
            x: the inputs
            target: the targets, a tensor or a list of dictionaries of tensors

        Returns:
            the inputs and the targets

        Raises:
            ValueError: if there is no GPU of that index
        """
        if self.gpu is None:
            return x, target
        check_gpu_index(self.gpu)
        device = torch.device("cuda", self.gpu)
        return move_to(x, device), move_to(target, device)

    def save(self, output_file: str) -> None:
        """Save a checkpoint, in one step: the file holds the old state or the new one, never a part of it.

        Beside ``epoch``, ``step``, ``min_loss`` and ``model`` the checkpoint holds what resuming needs: ``optimizer``,
        ``scheduler``, ``scaler``, ``rng`` and ``fit``, the arguments of the current :meth:`fit_n_epochs`.

        Args:
            output_file: the destination; its folder is created where it does not exist
        """
        if distributed.rank() != 0:
            return
        checkpoint.write_checkpoint(
            {
                "epoch": self.epoch,
                "step": self.step,
                "min_loss": self.min_loss,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": self._rank_rng if distributed.world_size() > 1 else [self._capture_rng()],
                "fit": self._fit if self._between_epochs else None,
            },
            output_file,
        )

    def load(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint.

        The weights and counters are restored at once; if the checkpoint was saved by an unfinished
        :meth:`fit_n_epochs`, calling it again with the same arguments trains the remaining epochs of its schedule.
        With only the keys ``epoch``, ``step``, ``min_loss`` and ``model``, a new schedule is started in any case.

        Args:
            state: the checkpoint, as :func:`torch.load` returns it

        Raises:
            ValueError: if the checkpoint lacks one of the four keys
            RuntimeError: if its weights do not fit the model
        """
        missing = [key for key in ("epoch", "step", "min_loss", "model") if key not in state]
        if missing:
            raise ValueError(f"state is expected to be a checkpoint of a trainer; it lacks {', '.join(missing)}")
        self.model.load_state_dict(state["model"])
        self.start_epoch = state["epoch"]
        self.epoch = state["epoch"]
        self.step = state["step"]
        self.min_loss = state["min_loss"]
        fit = state.get("fit")
        unfinished = fit is not None and self.epoch < fit["first_epoch"] + fit["num_epochs"]
        self._loaded = dict(state) if unfinished else None

    def evaluate(self) -> dict[str, float]:
        """Evaluate the model on the validation set; subclasses say how.

        Returns:
            the metrics, of which ``val_loss`` selects the best checkpoint
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how to evaluate its model: define `evaluate`")

    def fit_n_epochs(
        self,
        num_epochs: int,
        lr: float,
        freeze_until: str | None = None,
        sched_type: str = "onecycle",
        norm_weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model for a number of epochs, or for what is left of them after :meth:`load`.

        The scheduler takes one step per update of the weights.

        Args:
            num_epochs: number of epochs of the schedule
            lr: the learning rate: the peak of ``onecycle``, the start of ``cosine``; it applies to all parameters
            freeze_until: name of the last layer to freeze, by default none
            sched_type: ``onecycle`` (:class:`~torch.optim.lr_scheduler.OneCycleLR`) or ``cosine``
                (:class:`~torch.optim.lr_scheduler.CosineAnnealingLR`, by default down to 0)
            norm_weight_decay: weight decay of the parameters of normalization layers, by default that of the others
            **kwargs: further arguments of the scheduler

        Raises:
            ValueError: if an argument is out of range, no layer is left to train, the training loader is empty, or the
                loss is NaN or infinite for more than `nan_tolerance` consecutive batches
        """
        if not isinstance(num_epochs, int) or num_epochs < 1:
            raise ValueError(f"num_epochs is expected to be a positive integer, got {num_epochs!r}")
        check_lr("lr", lr)
        asked = {
            "num_epochs": num_epochs,
            "lr": float(lr),
            "freeze_until": freeze_until,
            "sched_type": sched_type,
            "norm_weight_decay": norm_weight_decay,
            "scheduler_kwargs": repr(sorted(kwargs.items())),
        }
        self._prepare(lr, freeze_until, norm_weight_decay)
        num_updates = num_epochs * math.ceil(count_batches(self._loader(training=True)) / self.gradient_acc)
        self.scheduler = build_scheduler(self.optimizer, sched_type, lr, num_updates, **kwargs)
        loaded, self._loaded = self._loaded, None
        self.start_epoch = self.epoch
        if loaded is not None and checkpoint.is_same_schedule(loaded["fit"], asked):
            self.start_epoch = loaded["fit"]["first_epoch"]
            checkpoint.restore_schedule(loaded, self.optimizer, self.scheduler, self.scaler)
            if distributed.rank() < len(loaded["rng"]):
                checkpoint.restore_rng(
                    loaded["rng"][distributed.rank()], (self.train_loader, self.val_loader), self.gpu
                )
        self._fit = {**asked, "first_epoch": self.start_epoch}

        last_epoch = self.start_epoch + num_epochs
        while self.epoch < last_epoch:
            self._fit_epoch(last_epoch)
            self._end_epoch(self.evaluate(), last_epoch)
        distributed.barrier()  # the checkpoint is there, for every process

    def _end_epoch(self, metrics: dict[str, Any], last_epoch: int) -> None:
        val_loss = metrics["val_loss"]
        improved = val_loss is not None and val_loss < self.min_loss
        write_line(f"Epoch {self.epoch}/{last_epoch} - {describe_metrics(metrics)}")
        if distributed.world_size() > 1:
            self._rank_rng = distributed.gather_over_ranks(self._capture_rng())
        if improved:
            write_line(f"Validation loss decreased {self.min_loss:.4} --> {val_loss:.4}: saving state...")
            self.min_loss = val_loss
            self.save(self.output_file)
        if val_loss is None or not math.isnan(val_loss):  # a diverged model is not worth resuming from
            self.save(os.fspath(checkpoint.last_checkpoint_path(self.output_file)))
        if self.on_epoch_end is not None and distributed.rank() == 0:
            self.on_epoch_end(metrics)

    def _capture_rng(self) -> dict[str, Any]:
        return checkpoint.capture_rng((self.train_loader, self.val_loader), self.gpu)

    def _loader(self, training: bool) -> DataLoader[Any]:
        """The part of a loader that is this process's, built once so that its workers may persist."""
        loader = self.train_loader if training else self.val_loader
        key = (id(loader), training)
        if key not in self._shards:
            self._shards[key] = (loader, distributed.shard_loader(loader, training))
        return self._shards[key][1]

    def _prepare(self, lr: float, freeze_until: str | None, norm_weight_decay: float | None) -> None:
        """Freeze, start the optimizer afresh and wrap the model: what every kind of training begins with."""
        freeze_model(self.model.train(), freeze_until)
        reset_param_groups(self.optimizer, self.model, self._user_groups, lr, norm_weight_decay)
        self.scaler = make_scaler(self.model, self.amp)
        self._nan_watch = NanWatch(self.nan_tolerance)
        self._forward = self.model  # lets go of the previous wrapper before there is a new one
        self._forward = distributed.wrap_model(self.model, self.gpu)

    def _get_loss(self, x: Tensor, target: Target, return_logits: bool = False) -> Any:
        """Compute the loss of a batch, and return it or the couple of the loss and the output."""
        forward = self._forward if self.model.training else self.model
        with autocast(self.model, self.amp):
            out = forward(x)
        if self.amp:
            out = out.float()
        loss = self._criterion_loss(out, target)
        return (loss, out) if return_logits else loss

    def _criterion_loss(self, out: Any, target: Any) -> Tensor:
        loss: Tensor = self.criterion(out, target)
        return loss

    def _validate(self) -> Iterator[tuple[Tensor, Any, float, Any]]:
        """Run the model on the validation set: yields inputs, targets, loss and output of each batch."""
        self.model.eval()
        loader = self._loader(training=False)
        for x, target in tqdm(loader, desc="Validation", leave=False, disable=not bars_are_shown()):
            x, target = self.to_cuda(x, target)
            loss, out = self._get_loss(x, target, return_logits=True)
            yield x, target, loss.item(), out

    def _fit_epoch(self, last_epoch: int) -> None:
        self._between_epochs = False
        self.model.train()
        freeze_bn(self.model)
        loader = self._loader(training=True)
        distributed.announce_epoch(loader, self.epoch)
        guard = BufferGuard(self.model, enabled=self.skip_nan_loss)
        self.optimizer.zero_grad(set_to_none=True)
        num_batches, num_usable = len(loader), 0
        bar = tqdm(loader, desc=f"Epoch {self.epoch + 1}/{last_epoch}", leave=False, disable=not bars_are_shown())
        for index, (x, target) in enumerate(bar):
            # The batches of one update: `position` is this one's among them.
            position = index % self.gradient_acc
            group = min(self.gradient_acc, num_batches - index + position)
            complete = position == group - 1
            with nullcontext() if complete else distributed.without_sync(self._forward):
                loss = self._get_loss(*self.to_cuda(x, target))
                value = loss.item()
                usable = self._nan_watch.is_finite(value) or not self.skip_nan_loss
                if usable:
                    self.scaler.scale(loss / group).backward()
            guard.after_batch(usable)
            num_usable += usable
            if complete and num_usable:
                if not usable and distributed.world_size() > 1:  # the backward pass that averages did not happen
                    distributed.average_gradients(param for param in self.model.parameters() if param.requires_grad)
                updated = update_weights(self.optimizer, self.scaler, self.grad_clip, rescale=group / num_usable)
                if updated and self.scheduler is not None:
                    self.scheduler.step()
            if complete:
                num_usable = 0
            self.step += 1
            bar.set_postfix_str(f"loss {value:.4}", refresh=False)
        self.epoch += 1
        distributed.broadcast(self.model.buffers())
        self._between_epochs = True

    def _trial_step(self, x: Tensor, target: Target) -> float:
        loss = self._get_loss(x, target)
        value = distributed.sum_over_ranks([loss.item()])[0] / distributed.world_size()
        if math.isfinite(value):
            self.scaler.scale(loss).backward()
            update_weights(self.optimizer, self.scaler, self.grad_clip)
        return value

    def find_lr(
        self,
        freeze_until: str | None = None,
        start_lr: float = 1e-7,
        end_lr: float = 1,
        norm_weight_decay: float | None = None,
        num_it: int = 100,
    ) -> None:
        """Try increasing learning rates, one a batch, and record the losses for :meth:`plot_recorder`.

        The weights are put back afterwards. Described in `"Cyclical Learning Rates for Training Neural Networks"
        <https://arxiv.org/pdf/1506.01186.pdf>`_.

        Args:
            freeze_until: name of the last layer to freeze, by default none
            start_lr: the first learning rate
            end_lr: the last learning rate
            norm_weight_decay: weight decay of the parameters of normalization layers, by default that of the others
            num_it: number of learning rates

        Raises:
            ValueError: if `num_it` is below 2 or above the number of batches, the rates do not increase from above 0,
                or the first loss is NaN or infinite
        """
        num_batches = count_batches(self._loader(training=True))
        if not isinstance(num_it, int) or not 2 <= num_it <= num_batches:
            raise ValueError(
                f"num_it is expected to be from 2 to the number of available batches ({num_batches}), got {num_it!r}"
            )
        check_lr("start_lr", start_lr)
        check_lr("end_lr", end_lr)
        if end_lr <= start_lr:
            raise ValueError(f"end_lr is expected to be above start_lr, got {end_lr!r} and {start_lr!r}")
        self._prepare(start_lr, freeze_until, norm_weight_decay)
        growth = (end_lr / start_lr) ** (1 / (num_it - 1))
        self.lr_recorder, self.loss_recorder = [], []
        with trial_run(self.model, self.optimizer):
            for index, (x, target) in zip(range(num_it), self._loader(training=True), strict=False):
                lr = start_lr * growth**index
                for param_group in self.optimizer.param_groups:
                    param_group["lr"] = lr
                loss = self._trial_step(*self.to_cuda(x, target))
                if not math.isfinite(loss):
                    if index == 0:
                        raise ValueError(
                            "loss value is NaN or inf on the first batch; check the data and the criterion"
                        )
                    break
                self.lr_recorder.append(lr)
                self.loss_recorder.append(loss)

    def plot_recorder(self, beta: float = 0.95, **kwargs: Any) -> None:
        """Plot the losses that :meth:`find_lr` recorded, smoothed, against the learning rate.

        Args:
            beta: weight of the past in the exponential moving average of the loss, in [0, 1)
            **kwargs: arguments of :func:`matplotlib.pyplot.show`

        Raises:
            AssertionError: if nothing was recorded
            ValueError: if `beta` is out of range
        """
        if len(self.lr_recorder) != len(self.loss_recorder) or len(self.lr_recorder) == 0:
            raise AssertionError("there is nothing to plot: please run `find_lr` first")
        if not 0 <= beta < 1:
            raise ValueError(f"beta is expected to be in [0, 1), got {beta!r}")
        if distributed.rank() == 0:
            plot_lr_search(self.lr_recorder, self.loss_recorder, beta, **kwargs)

    def check_setup(
        self,
        freeze_until: str | None = None,
        lr: float = 3e-4,
        norm_weight_decay: float | None = None,
        num_it: int = 100,
        **kwargs: Any,
    ) -> None:
        """Train on a single batch and plot its loss, which a sound set-up brings to almost nothing.

        The weights are put back afterwards.

        Args:
            freeze_until: name of the last layer to freeze, by default none
            lr: the learning rate
            norm_weight_decay: weight decay of the parameters of normalization layers, by default that of the others
            num_it: number of updates
            **kwargs: arguments of :func:`matplotlib.pyplot.show`

        Raises:
            ValueError: if `lr` or `num_it` is not positive, or the loss is NaN or infinite
        """
        if not isinstance(num_it, int) or num_it < 1:
            raise ValueError(f"num_it is expected to be a positive integer, got {num_it!r}")
        check_lr("lr", lr)
        count_batches(self._loader(training=True))
        self._prepare(lr, freeze_until, norm_weight_decay)
        losses: list[float] = []
        with trial_run(self.model, self.optimizer):
            batch = self.to_cuda(*next(iter(self._loader(training=True))))
            for _ in range(num_it):
                losses.append(self._trial_step(*batch))
                if not math.isfinite(losses[-1]):
                    raise ValueError(f"loss value is NaN or inf after {len(losses) - 1} updates of a single batch")
        if distributed.rank() == 0:
            plot_losses(losses, **kwargs)
