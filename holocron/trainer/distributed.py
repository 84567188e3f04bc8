"""Training in several processes: what a trainer needs to run unchanged under ``torchrun``.

Every function here does nothing, or the obvious, in a single process.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler


def join_process_group(gpu: int | None) -> int | None:
    """Join the process group that ``torchrun`` announces in the environment, unless the program did so already.

    Args:
        gpu: index of the GPU the program asked for, or None to train on CPU

    Returns:
        index of the GPU this process is to use: under ``torchrun`` each local process has its own
    """
    announced = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ
    if gpu is not None and announced:
        gpu = int(os.environ.get("LOCAL_RANK", gpu))
    if dist.is_available() and announced and not dist.is_initialized():
        if gpu is not None and torch.cuda.is_available():
            torch.cuda.set_device(gpu)
        dist.init_process_group("gloo" if gpu is None else "nccl")
        atexit.register(leave_process_group)
    return gpu


def leave_process_group() -> None:
    """Leave the process group, if there is one."""
    if _in_group():
        dist.destroy_process_group()


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _in_group() else 1


def rank() -> int:
    """Return the index of this process among them; 0 saves and prints."""
    return dist.get_rank() if _in_group() else 0


def _communication_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Add numbers over the processes, in float64.

    Args:
        values: the numbers of this process

    Returns:
        their sums, the same in every process
    """
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=_communication_device())
    dist.all_reduce(total)
    return total.tolist()


def gather_over_ranks(value: Any) -> list[Any]:
    """Collect one object from each process.

    Args:
        value: the object of this process

    Returns:
        the objects of all processes in the order of their ranks
    """
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of rank 0.

    Args:
        tensors: the tensors, in the same order in every process
    """
    if world_size() == 1:
        return
    device = _communication_device()
    with torch.no_grad():
        for tensor in tensors:
            staged = tensor.detach().to(device).contiguous()
            dist.broadcast(staged, src=0)
            tensor.copy_(staged)


def average_gradients(params: Iterable[nn.Parameter]) -> None:
    """Average gradients that :class:`DistributedDataParallel` was told not to.

    Args:
        params: the trained parameters, in the same order in every process
    """
    device, world = _communication_device(), world_size()
    for param in params:
        gradient = torch.zeros_like(param) if param.grad is None else param.grad
        staged = gradient.to(device).contiguous()
        dist.all_reduce(staged)
        param.grad = (staged / world).to(param.device)


def wrap_model(model: nn.Module, gpu: int | None) -> nn.Module:
    """Wrap a model so that its gradients are averaged over the processes during the backward pass.

    Args:
        model: the model; which parameters are frozen must not change afterwards
        gpu: index of the GPU it is on, or None

    Returns:
        what to call for the forward pass of a training step
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=None if gpu is None else [gpu])


def without_sync(forward: nn.Module) -> AbstractContextManager[None]:
    """Context in which a backward pass only accumulates gradients, without averaging them over the processes.

    Args:
        forward: what :func:`wrap_model` returned

    Returns:
        the context manager
    """
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()


class ShardedSampler(Sampler[Any]):
    """Give each process its part of what another sampler draws.

    Rank 0 draws the order and the others receive it, so that any sampler can be shared out, whatever it draws from, and
    together the processes see what a single one would: the k-th batches of all ranks make up the k-th batch of one
    process with the global batch size.

    Args:
        sampler: what draws the indices, or the batches of indices; it must have a length
        even: ``pad`` repeats the first elements until each process has as many as the others, ``drop`` leaves out the
            last ones to that end, ``no`` shares out each element exactly once
    """

    def __init__(self, sampler: Iterable[Any], even: str) -> None:
        super().__init__()
        self.sampler = sampler
        self.even = even

    def set_epoch(self, epoch: int) -> None:
        """Tell the wrapped sampler which epoch begins.

        Args:
            epoch: number of epochs done so far
        """
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.sampler, SequentialSampler):
            order = list(self.sampler)
        else:
            box: list[Any] = [list(self.sampler) if rank() == 0 else None]
            dist.broadcast_object_list(box, src=0)
            order = box[0]
        share = order[rank() :: world_size()]
        if self.even == "drop":
            share = share[: len(order) // world_size()]
        elif self.even == "pad" and order and len(share) < -(-len(order) // world_size()):
            # Only the last round is incomplete; the first elements complete it.
            share.append(order[(rank() - len(order) % world_size()) % len(order)])
        return iter(share)

    def __len__(self) -> int:
        if not isinstance(self.sampler, Sized):
            raise TypeError(f"{type(self.sampler).__name__} has no length, and cannot be shared out over the processes")
        total, world = len(self.sampler), world_size()
        if self.even == "drop":
            return total // world
        if self.even == "pad":
            return -(-total // world)
        return len(range(rank(), total, world))


def shard_loader(loader: DataLoader[Any], training: bool) -> DataLoader[Any]:
    """Rebuild a loader so that it reads this process's part of the data.

    The batch size stays what it is: it counts the samples of one process. A loader that shards already (its sampler is
    a :class:`~torch.utils.data.distributed.DistributedSampler`) and one over an
    :class:`~torch.utils.data.IterableDataset`, which has to shard by itself, are returned as they are.

    Args:
        loader: the loader of the program
        training: whether every process must get as many batches as the others; otherwise no sample is repeated or
            left out, which is what metrics need

    Returns:
        the loader of this process
    """
    if (
        world_size() == 1
        or not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or isinstance(loader.sampler, DistributedSampler)
        or isinstance(getattr(loader.batch_sampler, "sampler", None), DistributedSampler)
    ):
        return loader
    even = "no" if not training else "drop" if loader.drop_last else "pad"
    batching: dict[str, Any]
    if loader.batch_size is None and loader.batch_sampler is not None:
        batching = {"batch_sampler": ShardedSampler(loader.batch_sampler, even)}
    else:
        batching = {
            "batch_size": loader.batch_size,
            "sampler": ShardedSampler(loader.sampler, even),
            "drop_last": loader.drop_last,
        }
    return DataLoader(
        loader.dataset,
        **batching,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


def announce_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Call ``set_epoch`` on the samplers of a loader that have it.

    Args:
        loader: the training loader
        epoch: number of epochs done so far
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
