"""What several processes of `torch.distributed` have to agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["is_main", "mean_of_all", "process_group", "rank", "torch_threads", "world"]


@contextmanager
def process_group(device: str = "cpu") -> Iterator[None]:
    """Join the other processes that ``torchrun`` has started, if it has and the caller has not, and leave in the end.

    Parameters
    ----------
    device : str
        Where they compute: ``gloo`` connects processes on CPUs, ``nccl`` others.
    """
    if _together() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device != "cpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield
        dist.barrier()  # a process that leaves while others still talk to it may keep them waiting
    finally:
        dist.destroy_process_group()


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many threads, None as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _together() -> bool:
    return bool(dist.is_available() and dist.is_initialized())


def rank() -> int:
    """Return the number of this process, 0 without others."""
    return int(dist.get_rank()) if _together() else 0


def world() -> int:
    """Return how many processes train together."""
    return int(dist.get_world_size()) if _together() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def mean_of_all(rows: Tensor) -> Tensor:
    """Return what averages over processes to the mean of the rows of all; each may have another number of them."""
    if world() == 1:
        return rows.mean()
    count = torch.tensor(float(rows.numel()), device=rows.device)
    dist.all_reduce(count)
    return rows.sum() * (world() / count)
