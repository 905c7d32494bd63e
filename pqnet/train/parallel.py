"""What several processes of `torch.distributed` have to agree on."""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["is_main", "mean_of_all", "rank", "world"]


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
