"""What several processes of `torch.distributed` have to agree on."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pqnet._threads import default_threads

__all__ = ["free_cpus", "is_main", "mean_of_all", "process_group", "rank", "torch_threads", "world"]

IDLE = [3, 4]  # columns of /proc/stat
ALMOST = 0.25  # of a CPU that may be in use when it counts as free


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
    """Let PyTorch use so many threads; None: as many as before, but no more than there are CPUs left for.

    Its threads wait for each other after every operation: with one more than CPUs that nothing else uses, a step takes
    ten times as long as with one thread alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or max(1, min(before, default_threads(), free_cpus())))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_cpus(seconds: float = 0.1) -> int:
    """Return how many of the CPUs that this process may use nobody is using now; all where that cannot be known."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    try:
        first = _ticks(mine)
        time.sleep(seconds)
        spent = _ticks(mine) - first
    except (OSError, ValueError, IndexError):
        return len(mine)
    every = spent.sum(1)
    idle = spent[:, IDLE].sum(1)[every > 0] / every[every > 0]
    return int(idle.sum() + ALMOST) if len(idle) else len(mine)


def _ticks(names: set[str]) -> np.ndarray:
    """Return what Linux has counted for each of some CPUs: user, nice, system, idle, waiting for a disk, others."""
    with open("/proc/stat", encoding="ascii") as file:
        rows = [line.split() for line in file if line.startswith("cpu")]
    return np.array([[int(n) for n in row[1:9]] for row in rows if row[0] in names]).reshape(-1, 8)


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
